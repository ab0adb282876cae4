"""Workers for which there are no machines yet, on Ray's own autoscaler with its simulated cloud."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.cluster.ray_jobs import RayCluster
from service.domain.job import new_job_id
from service.standalone.ports import LOOPBACK, choose_port
from service.standalone.ray_head import LocalRay
from tests.fixtures.cluster import is_active
from tests.fixtures.waiting import wait_until

HEAD_ID = "f" * 51 + "00000"
"""By which the simulated cloud knows the head."""

ENVIRONMENT = {
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}
NODES = 2
"""How many nodes, of one CPU each, the autoscaler may add."""

CLOUD: dict[str, Any] = {
    "cluster_name": "simulated",
    "max_workers": NODES,
    "provider": {
        "type": "external",
        "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
        "head_node_id": HEAD_ID,
        "launch_multiple": True,
    },
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
        "worker": {
            "resources": {"CPU": 1, "object_store_memory": 100_000_000},
            "node_config": {},
            "max_workers": NODES,
        },
    },
    "head_node_type": "ray.head.default",
    # The rest is for clouds whose nodes are prepared over SSH; Ray wants it in every file.
    "upscaling_speed": 1.0,
    "idle_timeout_minutes": 5,
    "auth": {},
    "docker": {},
    "initialization_commands": [],
    "setup_commands": [],
    "head_setup_commands": [],
    "worker_setup_commands": [],
    "head_start_ray_commands": [],
    "worker_start_ray_commands": [],
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    "rsync_exclude": [],
    "rsync_filter": [],
}

DRIVER = """
import json, pathlib, sys
import ray
from service.domain.placement import Placement
from service.errors import InsufficientResources
from workers.actors.autoscaling import autoscales
from workers.actors.group import ActorGroup, machines
from tests.fixtures.waiting import wait_until

ray.init()
wait_until(autoscales)  # the autoscaler starts after the head

def enter(workers, patience_seconds):
    ready = []
    placement = Placement(workers, 1, 0)
    group = ActorGroup("job", None, placement, patience_seconds, ready.append, lambda: None)
    try:
        with group:
            return {"ready": ready, "cpus": sum(node.get("CPU", 0) for node in machines())}
    except InsufficientResources as error:
        return {"ready": ready, "error": str(error)}

seen = {"refused": enter(3, 240), "grown": enter(2, 240), "impatient": enter(3, 0)}
pathlib.Path(sys.argv[1]).write_text(json.dumps(seen))
"""


class AutoscalingRay(LocalRay):
    """A head without CPUs whose autoscaler adds nodes on this machine."""

    def _command(self, session: Path) -> list[str]:
        port = choose_port(0, "")
        cloud = CLOUD | {"provider": CLOUD["provider"] | {"gcs_address": f"{LOOPBACK}:{port}"}}
        file = session / "cloud.json"
        file.write_text(json.dumps(cloud))
        command = [word for word in super()._command(session) if not word.startswith("--port=")]
        return [*command, f"--port={port}", f"--autoscaling-config={file}"]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What a driver reports that asks for more workers than there are machines."""
    folder = tmp_path_factory.mktemp("autoscaling")
    (folder / "driver.py").write_text(DRIVER)
    job_id = new_job_id()
    command = f"env PYTHONPATH={Path(__file__).parents[2]} {sys.executable} {folder / 'driver.py'}"
    with (
        AutoscalingRay(folder / "ray", num_cpus=0, env=ENVIRONMENT) as ray,
        RayCluster(ray.dashboard_url, f"{command} {folder / 'out.json'}") as cluster,
    ):
        cluster.submit(job_id, 1)
        wait_until(lambda: not is_active(cluster, job_id, 1), seconds=300)
        log = cluster.log_tail(job_id, 1)
        assert (folder / "out.json").exists(), log
        yield json.loads((folder / "out.json").read_text())


def test_machines_that_the_autoscaler_adds_are_waited_for(seen: Any) -> None:
    assert seen["grown"]["ready"][0] == 0
    assert seen["grown"]["cpus"] == NODES


def test_more_machines_than_it_may_add_are_refused(seen: Any) -> None:
    assert "machines for 0 of 3 workers" in seen["refused"]["error"]
    assert "the autoscaler cannot add the others" in seen["refused"]["error"]


def test_the_wait_is_bounded(seen: Any) -> None:
    assert seen["impatient"]["ready"] == []
    assert "has not added the others in time" in seen["impatient"]["error"]

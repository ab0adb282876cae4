"""Workers for which the job names a type of GPU, on nodes that have Ray's label for it.

The nodes have a GPU in Ray's books alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from service.cluster.ray_jobs import RayCluster
from service.domain.job import new_job_id
from service.standalone.ray_head import LocalRay
from tests.fixtures.cluster import is_active
from tests.fixtures.nodes import Node
from tests.fixtures.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs 127.0.0.2 and more")

TYPES = {2: "A100", 3: "H100", 4: "A100"}
"""By the number of the node."""

DRIVER = """
import json, pathlib, sys
import ray
from ray.util import placement_group_table
from service.domain.placement import plan_placement
from service.errors import InsufficientResources
from workers.actors import group
from workers.actors.group import ActorGroup, machines

ray.init()
group.WAITING_SECONDS = 1
seen = {}

def planned(workers, kind):
    return plan_placement(workers, machines(kind), accelerator_type=kind)

def places(actors):
    bundles = placement_group_table(actors._group)["bundles_to_node_id"].values()
    labels = {node["NodeID"]: node["Labels"] for node in ray.nodes()}
    return [labels[node]["ray.io/accelerator-type"] for node in bundles]

for kind in ("A100", "H100"):
    with ActorGroup(kind, None, planned(None, kind), 0, None, None) as actors:
        seen[kind] = places(actors)
        if kind == "H100":  # the A100s are idle now
            def end_the_first():
                seen["waited"] = True
                actors.__exit__()
            with ActorGroup("second", None, planned(1, kind), 0, None, end_the_first) as others:
                seen["after"] = places(others)

for workers, kind in ((None, "L4"), (2, "H100")):
    try:
        planned(workers, kind)
    except InsufficientResources as error:
        seen[f"{workers} {kind}"] = [error.param, str(error)]
pathlib.Path(sys.argv[1]).write_text(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What a driver reports that asks for workers on GPUs of a type."""
    folder = tmp_path_factory.mktemp("types")
    (folder / "driver.py").write_text(DRIVER)
    (folder / "data").mkdir()
    root = Path(__file__).parents[2]
    command = f"env PYTHONPATH={root} {sys.executable} {folder / 'driver.py'}"
    job_id = new_job_id()
    with ExitStack() as started:
        head = started.enter_context(LocalRay(folder / "ray", num_cpus=0))
        for number, kind in TYPES.items():
            flags = ("--num-gpus=1", f"--labels=ray.io/accelerator-type={kind}")
            env = {**head.token_environment(), "PYTHONPATH": str(root)}
            node = started.enter_context(Node(number, head, folder / "data", env, *flags))
            node.wait_until_joined()
        cluster = started.enter_context(
            RayCluster(head.dashboard_url, f"{command} {folder / 'out.json'}")
        )
        cluster.submit(job_id, 1)
        wait_until(lambda: not is_active(cluster, job_id, 1), seconds=300)
        log = cluster.log_tail(job_id, 1)
        assert (folder / "out.json").exists(), log
        yield json.loads((folder / "out.json").read_text())


def test_workers_are_where_gpus_of_the_type_are(seen: Any) -> None:
    assert seen["A100"] == ["A100", "A100"]
    assert seen["H100"] == ["H100"]


def test_gpus_of_the_type_are_waited_for_while_those_of_another_are_idle(seen: Any) -> None:
    assert seen["waited"]
    assert seen["after"] == ["H100"]


def test_a_type_that_no_machine_has_is_refused_by_name(seen: Any) -> None:
    param, message = seen["None L4"]
    assert param == "accelerator_type"
    assert "no machine of the cluster has GPUs of type L4" in message


def test_more_gpus_of_the_type_than_there_are_are_refused(seen: Any) -> None:
    param, message = seen["2 H100"]
    assert param == "workers"
    assert "the machines of type H100 have 1 GPUs and 1 CPUs" in message

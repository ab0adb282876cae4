"""A local Ray serves only its own processes and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from service.cluster.ray_jobs import RayCluster, authorization
from service.domain.job import new_job_id
from service.errors import ClusterUnavailable, InfrastructureError, InvalidParameter
from service.standalone import ray_head as local_ray_module
from service.standalone.ports import choose_port
from service.standalone.ray_head import BOUNDS, LocalRay
from service.standalone.subprocesses import is_running
from tests.fixtures.listener import listening
from tests.fixtures.waiting import wait_until

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}

FEW = {
    "RAY_maximum_gcs_destroyed_actor_cached_count": "1",
    "RAY_task_events_max_num_task_in_gcs": "3",
}
"""Lower bounds than those of the product, which take hundreds of jobs to reach."""

STUBBORN = """
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
pathlib.Path(sys.argv[1]).write_text(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""

REPORTING = """
import json, os, pathlib, sys
seen = {"python": sys.executable, "passed": os.environ.get("PASSED_ON")}
pathlib.Path(sys.argv[1]).write_text(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRay]:
    """A Ray of this module's own, beside the session's."""
    directory = tmp_path_factory.mktemp("own-ray")
    assert FEW.keys() < BOUNDS.keys()
    with LocalRay(directory, num_cpus=1, num_gpus=2, env={"PASSED_ON": "yes"} | FEW) as ray:
        yield ray


def script(folder: Path, code: str) -> str:
    """A driver's command that runs `code` with the path of its output as first argument."""
    (folder / "driver.py").write_text(code)
    return f"python {folder / 'driver.py'} {folder / 'out'}"


def listed(ray: LocalRay, records: str) -> list[dict[str, Any]]:
    """Ray's records of this kind."""
    url = f"{ray.dashboard_url}/api/v0/{records}"
    answer = httpx.get(url, headers=authorization(), trust_env=False, timeout=30).json()
    found: list[dict[str, Any]] = answer["data"]["result"]["result"]
    return found


def start_driver(ray: LocalRay, folder: Path, code: str) -> str:
    """Start `code` as a driver; returns what it wrote."""
    job_id = new_job_id()
    with RayCluster(ray.dashboard_url, script(folder, code)) as cluster:
        cluster.submit(job_id, 1)
        out = folder / "out"
        wait_until(lambda: out.exists() and out.read_text())
    return out.read_text()


def test_it_listens_on_loopback_only(ray: LocalRay, tmp_path: Path) -> None:
    start_driver(ray, tmp_path, REPORTING)
    listening = set()
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # some live for a moment
            listening |= {
                (connection.laddr.ip, connection.laddr.port)
                for connection in process.net_connections(kind="inet")
                if connection.status in (psutil.CONN_LISTEN, psutil.CONN_NONE)
            }
    assert ("127.0.0.1", int(ray.dashboard_url.rpartition(":")[2])) in listening
    assert {ip for ip, _ in listening} <= LOOPBACK


STRANGER = """
import os, sys, urllib.error, urllib.request
url, token = sys.argv[1:]
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

def submit():
    data, headers = b'{"entrypoint": "true"}', {"Content-Type": "application/json"}
    try:
        return direct.open(urllib.request.Request(url + "/api/jobs/", data, headers)).status
    except urllib.error.HTTPError as error:
        return error.code

submit()  # the stranger may not read the modules that this imports
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
try:
    print(open(token).read())
except PermissionError:
    print("secret")
print(submit())
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_another_user_of_the_machine_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with LocalRay(tmp_path / "ray", num_cpus=1) as ray:
        command = [sys.executable, "-c", STRANGER, ray.dashboard_url, str(ray.token_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert done.stdout.split() == ["secret", "401"]
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(ray.token_path))
        with RayCluster(ray.dashboard_url, "true") as cluster:
            cluster.submit(new_job_id(), 1)


ADDRESS = """
import os, pathlib, sys
pathlib.Path(sys.argv[1]).write_text(os.environ["RAY_ADDRESS"])
"""

JOIN = "import ray; ray.init(); print('joined')"


def test_nobody_joins_it_without_the_token(ray: LocalRay, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "RAY_NUM_REDIS_GET_RETRIES": "3",  # one each second; by default 20
        "RAY_ADDRESS": start_driver(ray, tmp_path, ADDRESS),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as the head has it
    }
    del environment["RAY_AUTH_TOKEN"]
    done = subprocess.run(
        [sys.executable, "-c", JOIN], env=environment, capture_output=True, text=True, timeout=120
    )
    assert "Failed to connect to Ray cluster" in done.stderr
    assert "joined" not in done.stdout


def test_two_run_side_by_side(ray: LocalRay, local_ray: LocalRay) -> None:
    assert ray.dashboard_url != local_ray.dashboard_url
    for one in (ray, local_ray):
        with RayCluster(one.dashboard_url, "true") as cluster:
            cluster.check()
        assert one.is_running()


def test_it_has_the_resources_asked_for(ray: LocalRay) -> None:
    (node,) = listed(ray, "nodes")
    assert node["resources_total"]["CPU"] == 1
    assert node["resources_total"]["GPU"] == 2


def test_drivers_get_our_python_and_the_environment(ray: LocalRay, tmp_path: Path) -> None:
    seen = json.loads(start_driver(ray, tmp_path, REPORTING))
    assert Path(seen["python"]).samefile(sys.executable)
    assert seen["passed"] == "yes"


CALLS = """
import os, pathlib, ray, sys
ray.init()

@ray.remote(num_cpus=0)
class Actor:
    def call(self):
        pass

actor = Actor.remote()
ray.get([actor.call.remote() for _ in range(5)])
pathlib.Path(sys.argv[1]).write_text("called")
"""


def test_it_keeps_few_records_of_what_has_ended(ray: LocalRay, tmp_path: Path) -> None:
    start_driver(ray, tmp_path, CALLS)
    # Two actors have ended, the driver's own and the one that watched the driver.
    wait_until(lambda: {actor["state"] for actor in listed(ray, "actors")} == {"DEAD"})

    assert len(listed(ray, "actors")) == 1
    assert 1 <= len(listed(ray, "tasks")) <= 3


def test_its_agent_keeps_no_counters_of_workers(ray: LocalRay) -> None:
    session = Path((ray.token_path.parent / "session").read_text())
    (port,) = session.glob("r/session_latest/metrics_export_port_*")
    assert port.read_text() == "-1"


@pytest.mark.parametrize("head_first", [False, True], ids=["stopped", "head killed first"])
def test_nothing_is_left_even_of_a_driver_that_ignores_being_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head_first: bool
) -> None:
    monkeypatch.setattr(local_ray_module, "STOP_SECONDS", 4.0)
    monkeypatch.setattr(local_ray_module, "LEFT_SECONDS", 1.0)
    sockets = Path(tempfile.mkdtemp(prefix="sockets-"))  # as short a path as the real one's
    monkeypatch.setattr(tempfile, "tempdir", str(sockets))
    others = set(psutil.Process().children())
    ray = LocalRay(tmp_path / "ray", num_cpus=1)
    ray.start()
    (head,) = set(psutil.Process().children()) - others
    driver = [psutil.Process(int(pid)) for pid in start_driver(ray, tmp_path, STUBBORN).split()]
    family = [head, *head.children(recursive=True), *driver]
    if head_first:
        head.kill()
        wait_until(lambda: not ray.is_running())
    ray.stop()
    ray.stop()  # again does nothing
    assert not ray.is_running()
    assert not any(map(is_running, family))
    assert list(sockets.iterdir()) == []
    shutil.rmtree(sockets)


def test_a_taken_port_is_the_callers_mistake(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ray = LocalRay(tmp_path, dashboard_port=taken.getsockname()[1])
        with pytest.raises(InvalidParameter, match="cannot be used"):
            ray.start()
    assert not ray.is_running()


def test_another_ray_that_takes_the_port_meanwhile_is_not_taken_for_ours(
    ray: LocalRay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = int(ray.dashboard_url.rpartition(":")[2])
    monkeypatch.setattr(local_ray_module, "choose_port", lambda port, _: port or choose_port(0, ""))
    second = LocalRay(tmp_path, num_cpus=1, dashboard_port=taken)
    with pytest.raises(InfrastructureError, match=f"at port {taken}"):
        second.start()
    assert not second.is_running()
    assert ray.is_running()


def test_the_token_goes_to_no_other_process_that_has_taken_the_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_ray_module, "choose_port", lambda port, _: port or choose_port(0, ""))
    with listening() as other:
        ray = LocalRay(tmp_path, num_cpus=1, dashboard_port=other.port)
        with pytest.raises(InfrastructureError, match=f"at port {other.port}"):
            ray.start()
    assert not ray.is_running()
    assert other.seen == []


def test_a_ray_that_does_not_start_says_why(tmp_path: Path) -> None:
    ray = LocalRay(tmp_path, num_cpus=-1)
    with pytest.raises(ClusterUnavailable, match=r"(?s)ended while starting.*negative"):
        ray.start()
    assert not ray.is_running()

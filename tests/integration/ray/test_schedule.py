"""Calls to real actors run in order, a few at a time, until the first error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.cluster.ray_jobs import RayCluster
from service.domain.job import new_job_id
from service.standalone.ray_head import LocalRay
from tests.fixtures.cluster import is_active
from tests.fixtures.waiting import wait_until

DRIVER = """
import json, pathlib, sys
from functools import partial
import ray
from workers.attempt.schedule import IN_FLIGHT_PER_QUEUE, Call, drive

ray.init()
submitted, ended, most = [], [], 0

@ray.remote(num_cpus=0)
class Actor:
    def __init__(self):
        self.seen = []
    def work(self, value):
        self.seen.append(value)
        if value < 0:
            raise ValueError("a negative value")
        return value * 10
    def history(self):
        return self.seen

one, two = Actor.remote(), Actor.remote()

def call(actor, value):
    def submit():
        submitted.append(value)
        return actor.work.remote(value)
    return Call(value, submit)

for label, result in drive([[call(one, v) for v in range(8)], [call(two, 100)], []]):
    ended.append([label, result])
    most = max(most, len(submitted) - len(ended))

common = iter(range(1000, 1020))

def from_common(actor):
    for value in common:
        yield call(actor, value)

shared = [label for label, _ in drive([from_common(one), from_common(two)])]

failing = drive([[call(one, 8), call(one, -1), *(call(one, v) for v in range(9, 90))]])
try:
    list(failing)
    error = None
except ValueError as raised:
    error = str(raised.cause)
report = {
    "ended": ended, "most": most, "bound": 2 * IN_FLIGHT_PER_QUEUE, "error": error,
    "one": ray.get(one.history.remote()), "two": ray.get(two.history.remote()),
    "shared": shared,
    "nothing": list(drive([])),
}
out = pathlib.Path(sys.argv[1])
out.with_suffix(".part").write_text(json.dumps(report))
out.with_suffix(".part").rename(out)
"""


@pytest.fixture(scope="module")
def seen(local_ray: LocalRay, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a driver with two actors reports."""
    folder: Path = tmp_path_factory.mktemp("schedule")
    (folder / "driver.py").write_text(DRIVER)
    job_id = new_job_id()
    command = f"python {folder / 'driver.py'} {folder / 'out.json'}"
    with RayCluster(local_ray.dashboard_url, command) as cluster:
        cluster.submit(job_id, 1)
        wait_until(lambda: not is_active(cluster, job_id, 1), seconds=120)
        log = cluster.log_tail(job_id, 1)
    assert (folder / "out.json").exists(), log
    return json.loads((folder / "out.json").read_text())


def test_every_call_ends_with_its_own_result(seen: Any) -> None:
    assert sorted(seen["ended"]) == [[value, value * 10] for value in [*range(8), 100]]
    assert seen["nothing"] == []


def test_a_queue_runs_in_order(seen: Any) -> None:
    assert seen["one"][:8] == list(range(8))
    assert seen["two"][0] == 100


def test_queues_that_draw_from_one_iterator_share_its_calls(seen: Any) -> None:
    assert sorted(seen["shared"]) == list(range(1000, 1020))
    assert sorted(v for v in seen["one"] + seen["two"] if v >= 1000) == list(range(1000, 1020))
    assert min(max(seen["one"]), max(seen["two"])) >= 1000


def test_only_a_few_calls_are_under_way(seen: Any) -> None:
    assert seen["most"] <= seen["bound"]


def test_the_first_error_is_raised_and_nothing_more_is_submitted(seen: Any) -> None:
    assert seen["error"] == "a negative value"
    history = [value for value in seen["one"] if value < 1000]
    assert history[8:10] == [8, -1]
    assert len(history) <= 8 + 2 + 2

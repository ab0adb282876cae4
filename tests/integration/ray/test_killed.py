"""A job gives the same result after its driver or a worker was killed on a real Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import pytest

from service.domain.job import DEFAULT_TENANT, Job
from service.domain.states import JobState, Step
from service.standalone.subprocesses import is_running
from tests.fixtures.installation import Installation, ended
from tests.fixtures.models import save_tiny_model, tiny_llama_config
from tests.fixtures.waiting import wait_until

WORKERS, BLOCKS, BATCH, SEQUENCES = 2, 4, 2, 128


@pytest.fixture(scope="module")
def installation(running_installation: Installation) -> Installation:
    return running_installation


def create(installation: Installation, sequences: int = SEQUENCES) -> Job:
    """A job whose calibration and whose solving take seconds."""
    spec = installation.spec()
    model = installation.inputs / "larger"
    if not model.exists():
        save_tiny_model(
            model,
            tiny_llama_config(hidden_size=512, intermediate_size=1024, num_hidden_layers=BLOCKS),
        )
    calibration = spec.calibration.model_copy(update={"sequences": sequences, "batch_size": BATCH})
    source = spec.model.model_copy(update={"path": str(model)})
    return installation.store.users(DEFAULT_TENANT).create(
        spec.model_copy(update={"model": source, "calibration": calibration, "workers": WORKERS})
    )


@pytest.fixture(scope="module")
def undisturbed(installation: Installation) -> dict[str, str]:
    return installation.weights(installation.wait_for(create(installation), ended))


def event(installation: Installation, job: Job, type_: str) -> Any:
    """What the first event of a type says."""
    events = installation.store.records.events(job.id)
    return next(each.data for each in events if each.type == type_)


def driver(_installation: Installation, job: Job) -> psutil.Process:
    """The attempt's own process, not the shell that Ray runs it in."""
    (found,) = [
        process
        for process in psutil.process_iter(["cmdline"])
        if (line := process.info["cmdline"] or [])[1:3] == ["-m", "workers.attempt.driver"]
        and job.id in line
    ]
    return found


def worker(installation: Installation, job: Job) -> psutil.Process:
    return psutil.Process(installation.placements(job)[0][1]["pid"])


@pytest.mark.parametrize(
    ("victim", "step", "units"),
    [(driver, Step.CALIBRATE, WORKERS * (BLOCKS + 1 + 2)), (worker, Step.SOLVE, 4 * BLOCKS - 2)],
    ids=["driver-calibrate", "worker-solve"],
)
def test_a_killed_process_costs_some_blocks_and_changes_no_bit(
    installation: Installation,
    undisturbed: dict[str, str],
    victim: Callable[[Installation, Job], psutil.Process],
    step: Step,
    units: int,
) -> None:
    job = create(installation)
    wait_until(lambda: installation.done(job, step) >= units, seconds=240)
    victim(installation, job).kill()
    reached = installation.done(job, step)
    finished = installation.wait_for(job, ended)
    assert finished.attempt == 2
    assert installation.weights(finished) == undisturbed
    if step is Step.SOLVE:
        resumed = event(installation, job, "attempt.resumed")
        assert resumed["passes"] > 0
        assert resumed["groups"] >= reached - WORKERS


@pytest.mark.parametrize(("step", "sequences"), [(Step.CALIBRATE, SEQUENCES), (Step.SOLVE, 16)])
def test_cancelling_stops_driver_and_workers_within_seconds(
    installation: Installation, step: Step, sequences: int
) -> None:
    job = create(installation, sequences)
    wait_until(lambda: installation.done(job, step) >= 1, seconds=240)
    processes = [driver(installation, job), worker(installation, job)]
    installation.store.users(DEFAULT_TENANT).cancel(job.id)
    wait_until(lambda: not any(map(is_running, processes)), 30)
    assert installation.wait_for(job, ended).state is JobState.CANCELLED
    wait_until(lambda: installation.objects_of(job) == [])

"""A job that recovers its layers on a real Ray, undisturbed and with a worker killed meanwhile."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from service.domain.job import DEFAULT_TENANT, Job
from service.domain.states import JobState, Step
from tests.fixtures.installation import Installation, ended
from tests.fixtures.models import save_model_of_numbers
from tests.fixtures.waiting import wait_until

SEQUENCES, EPOCHS, STEPS = 32, 6, 6 * 7


@pytest.fixture(scope="module")
def installation(running_installation: Installation) -> Installation:
    return running_installation


def create(installation: Installation) -> Job:
    folder = installation.inputs / "of-numbers"
    if not folder.exists():
        save_model_of_numbers(folder)
    body: dict[str, Any] = {
        "model": {"source": "local", "path": str(folder)},
        "targets": [{"keep": 0.5}],
        "evaluation": {"sequences": 6, "decode_tokens": 0},
        "recovery": {"epochs": EPOCHS, "sequences": SEQUENCES},
    }
    spec = installation.spec(**body, workers=2)
    calibration = spec.calibration.model_copy(update={"sequences": SEQUENCES})
    return installation.store.users(DEFAULT_TENANT).create(
        spec.model_copy(update={"calibration": calibration})
    )


def test_a_worker_killed_while_it_trains_costs_some_steps_and_changes_no_bit(
    installation: Installation,
) -> None:
    """It takes half a minute: two jobs, one of them with two attempts."""
    undisturbed = installation.wait_for(create(installation), ended)
    assert undisturbed.state is JobState.SUCCEEDED
    report = installation.store.records.report(undisturbed.id)
    assert report is not None
    recovery = report["targets"][0]["recovery"]
    assert recovery["steps"] == STEPS
    assert recovery["divergence_after"] < recovery["divergence_before"]

    job = create(installation)
    wait_until(lambda: installation.done(job, Step.RECOVER) >= STEPS // 2, seconds=240)
    psutil.Process(installation.placements(job)[0][1]["pid"]).kill()
    finished = installation.wait_for(job, ended)
    assert finished.attempt == 2
    assert installation.weights(finished) == installation.weights(undisturbed)

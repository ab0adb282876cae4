"""What messages say, and when they are sent again."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from service.domain.job import EventType, Job
from service.domain.states import JobState
from service.domain.webhook import (
    DISABLED_AFTER_SECONDS,
    JITTER,
    MAX_DETAIL_CHARACTERS,
    SCHEDULE_SECONDS,
    WebhookEvent,
    job_message,
    new_secret,
    pause_seconds,
)
from service.errors import Failure
from tests.fixtures.jobs import small_spec

AT = datetime(2026, 11, 21, 12, 0, 0, 250_000, tzinfo=UTC)
JOB = Job(
    id="job-1",
    name="small",
    state=JobState.FAILED,
    stored_spec=small_spec().model_dump_json(),
    attempt=2,
    created_at=AT - timedelta(hours=1),
    started_at=AT,
    finished_at=AT,
    failure=Failure("data_invalid", "x" * 5000, "calibration.data"),
    steps=(),
)


def test_a_message_has_the_job_but_not_its_specification() -> None:
    message = json.loads(job_message("job.failed", AT, JOB))
    error = message["data"]["job"].pop("error")
    assert message == {
        "type": "job.failed",
        "timestamp": "2026-11-21T12:00:00.250000Z",
        "data": {
            "job": {
                "id": "job-1",
                "name": "small",
                "state": "failed",
                "attempt": 2,
                "created_at": "2026-11-21T11:00:00.250000Z",
                "finished_at": "2026-11-21T12:00:00.250000Z",
            }
        },
    }
    assert (error["code"], error["param"]) == ("data_invalid", "calibration.data")
    assert len(error["detail"]) <= MAX_DETAIL_CHARACTERS + 1


def test_a_job_that_runs_has_no_end_and_no_error() -> None:
    running = replace(JOB, state=JobState.RUNNING, finished_at=None, failure=None, name=None)
    job = json.loads(job_message("job.claimed", AT, running))["data"]["job"]
    assert (job["finished_at"], job["error"], job["name"]) == (None, None, None)


def test_the_schedule_is_the_standards() -> None:
    pauses = [pause_seconds(attempts, 0.0) for attempts in range(1, 12)]
    assert pauses == [5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400, None, None]
    assert timedelta(days=3) < timedelta(seconds=sum(SCHEDULE_SECONDS)) < timedelta(days=3.2)
    # The last attempt of a single message disables its webhook.
    assert sum(SCHEDULE_SECONDS[:-1]) < DISABLED_AFTER_SECONDS < sum(SCHEDULE_SECONDS)


@pytest.mark.parametrize("attempts", range(1, 10))
def test_jitter_only_lengthens_a_pause(attempts: int) -> None:
    shortest, longest = pause_seconds(attempts, 0.0), pause_seconds(attempts, 1.0)
    assert shortest is not None
    assert longest == pytest.approx(shortest * (1 + JITTER))


def test_a_secret_is_long_and_another_each_time() -> None:
    secret = new_secret()
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert secret != new_secret()


def test_every_change_of_state_can_be_sent() -> None:
    of_jobs = {event for event in EventType if event.startswith("job.")}
    assert {*WebhookEvent} == of_jobs - {EventType.CHANGED}  # its labels or priority

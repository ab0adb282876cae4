"""The frames that keep the steps on an open page up to date."""

from __future__ import annotations

import pytest
from fastapi import Request

from api.access import Caller
from api.pages.job.live import OpenJob
from api.services import Services
from service.domain.job import DEFAULT_TENANT
from service.domain.principal import Principal, Scope
from service.domain.states import JobState, Step
from service.store.news import Progress
from service.store.store import Store
from tests.unit.service.report.test_view import a_report


@pytest.fixture
def open_job(services: Services, store: Store, second_attempt: str) -> OpenJob:
    principal = Principal("admin", DEFAULT_TENANT, Scope.ADMIN)
    request = Request({"type": "http", "headers": [], "root_path": "", "state": {}})
    request.state.principal = principal
    caller = Caller(principal, store.users(DEFAULT_TENANT))
    stale = {second_attempt: Progress(JobState.RUNNING, 1, 0)}
    return OpenJob(request, services, caller, stale)


def test_the_steps_come_whole_and_are_then_what_the_page_shows(
    open_job: OpenJob, store: Store, second_attempt: str
) -> None:
    frames = open_job.frames([second_attempt], None).decode()
    assert frames.startswith("event: steps\n")
    assert "64 of 128 sequences" in frames
    assert "event: end" not in frames
    assert open_job.shown == store.news.standing([second_attempt], [DEFAULT_TENANT]).progress


def test_the_last_steps_are_followed_by_the_end(
    open_job: OpenJob, store: Store, second_attempt: str
) -> None:
    store.attempts.progress(second_attempt, 2, Step.CALIBRATE, 128, 128, "sequences")
    store.attempts.succeed(second_attempt, 2, a_report())
    frames = open_job.frames([second_attempt], None).decode()
    assert "succeeded" in frames
    assert frames.count("event: end\n") == 1
    assert frames.index("event: end\n") > frames.index("event: steps\n")


def test_a_deleted_job_ends_the_stream(
    open_job: OpenJob, store: Store, second_attempt: str
) -> None:
    users = store.users(DEFAULT_TENANT)
    users.cancel(second_attempt)
    store.claims.end_cancelled(second_attempt, 2)
    users.delete(second_attempt)
    assert open_job.frames([second_attempt], None).startswith(b"event: end\n")
    assert open_job.shown == {}


def test_nothing_new_is_no_frame(open_job: OpenJob) -> None:
    assert open_job.frames([], None) == b""

"""The buttons of a job's page, and what they leave in the audit log."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from service.domain.states import JobState
from service.errors import JobNotFound
from service.store.store import Store
from tests.unit.api.pages.conftest import Make
from tests.unit.api.pages.job.conftest import Succeeded


@pytest.mark.parametrize(
    ("action", "before", "after"),
    [
        ("cancel", JobState.QUEUED, JobState.CANCELLED),
        ("cancel", JobState.RUNNING, JobState.CANCELLING),
        ("retry", JobState.FAILED, JobState.QUEUED),
    ],
)
def test_a_click_changes_the_job_and_shows_it(
    client: TestClient,
    store: Store,
    make: Make,
    action: str,
    before: JobState,
    after: JobState,
) -> None:
    job_id = make(before)
    answer = client.post(f"/jobs/{job_id}/{action}", follow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/jobs/{job_id}")
    assert store.records.get(job_id).state is after
    (record,) = store.audit.list_records(limit=9)
    assert (record.action, record.subject) == (action, f"/v1/jobs/{job_id}")


def test_a_deleted_job_is_gone_and_the_others_are_shown(
    client: TestClient, store: Store, succeeded: Succeeded
) -> None:
    job_id = succeeded()
    answer = client.post(f"/jobs/{job_id}/delete", follow_redirects=False)
    assert (answer.status_code, answer.headers["Location"]) == (303, "/")
    with pytest.raises(JobNotFound):
        store.records.get(job_id)
    assert client.get(f"/jobs/{job_id}").status_code == 404
    (record,) = store.audit.list_records(limit=9)
    assert (record.action, record.subject) == ("delete", f"/v1/jobs/{job_id}")


@pytest.mark.parametrize(
    ("action", "state", "words"),
    [
        ("cancel", JobState.SUCCEEDED, "has already succeeded"),
        ("retry", JobState.RUNNING, "only a failed one can be retried"),
        ("delete", JobState.RUNNING, "cancel it, and delete it once it has ended"),
    ],
)
def test_a_click_that_comes_too_late_says_so(
    client: TestClient, make: Make, action: str, state: JobState, words: str
) -> None:
    answer = client.post(f"/jobs/{make(state)}/{action}")
    assert answer.status_code == 409
    assert words in answer.text


def test_a_page_of_another_site_cannot_click(client: TestClient, make: Make) -> None:
    job_id = make()
    headers = {"Origin": "https://elsewhere.test"}
    assert client.post(f"/jobs/{job_id}/cancel", headers=headers).status_code == 403

"""The logs of attempts over HTTP."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from fastapi.testclient import TestClient

from service.cluster.ray_jobs import Active
from service.domain.job import DEFAULT_TENANT
from service.errors import ClusterUnavailable
from service.store.store import Store
from tests.fixtures.jobs import small_spec


@pytest.fixture
def job_id(store: Store) -> str:
    return store.users(DEFAULT_TENANT).create(small_spec()).id


@pytest.fixture
def running(store: Store, job_id: str) -> str:
    """The address of the logs of a running job."""
    assert store.claims.claim() is not None
    return f"/v1/jobs/{job_id}/logs"


@pytest.fixture
def printing(monkeypatch: pytest.MonkeyPatch, cluster: object) -> None:
    """The driver runs and has printed a secret of the installation."""

    def read() -> Generator[bytes, None, None]:
        yield b"begun with 'secret'\n"

    monkeypatch.setattr(cluster, "status", lambda *_: Active())
    monkeypatch.setattr(cluster, "logs", lambda *_: {"driver": read})


def test_a_waiting_job_has_no_log_yet(client: TestClient, store: Store, job_id: str) -> None:
    page = client.get(f"/v1/jobs/{job_id}/logs").json()
    assert (page["attempt"], page["text"], page["complete"]) == (0, "", False)
    store.users(DEFAULT_TENANT).cancel(job_id)
    assert client.get(f"/v1/jobs/{job_id}/logs").json()["complete"] is True


@pytest.mark.usefixtures("printing")
def test_a_page_of_a_running_attempt(client: TestClient, running: str) -> None:
    assert client.get(running).json() == {
        "attempt": 1,
        "source": "driver",
        "sources": ["driver"],
        "start": 0,
        "text": "begun with '******'\n",
        "next_after": 20,
        "complete": False,
        "missing": None,
    }


@pytest.mark.usefixtures("printing")
def test_secrets_of_the_installation_are_masked(client: TestClient, running: str) -> None:
    text = client.get(running, params={"after": 14}).json()["text"]
    assert text == "****'\n"


def test_the_attempt_may_be_named(client: TestClient, running: str) -> None:
    answer = client.get(running, params={"attempt": 2})
    assert answer.status_code == 404
    assert answer.json()["code"] == "log_not_found"
    assert answer.json()["param"] == "attempt"


def test_an_unknown_job_is_a_problem(client: TestClient) -> None:
    answer = client.get("/v1/jobs/job-unknown/logs")
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source", "../../etc/passwd"),
        ("source", "worker-00"),
        ("source", "worker-0\n"),
        ("source", ""),
        ("attempt", "0"),
        ("attempt", str(2**31)),
        ("after", "-1"),
        ("limit", "1023"),
        ("limit", str(2**18 + 1)),
    ],
)
def test_a_value_out_of_bounds_is_refused(
    client: TestClient, running: str, name: str, value: str
) -> None:
    answer = client.get(running, params={name: value})
    assert (answer.status_code, answer.json()["param"]) == (422, name)


def test_ray_out_of_reach_says_when_to_try_again(
    client: TestClient, running: str, cluster: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise ClusterUnavailable

    monkeypatch.setattr(cluster, "status", away)
    answer = client.get(running)
    assert (answer.status_code, answer.json()["code"]) == (503, "cluster_unavailable")
    assert int(answer.headers["Retry-After"]) > 0

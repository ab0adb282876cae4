"""`service.client.client` against scripted answers, and against a port without a server."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.client.client import ApiProblem, ApiUnreachable, Client, ClientError
from service.domain.states import JobState

Answer = Callable[[httpx.Request], httpx.Response]

PROBLEM = {
    "type": "about:blank",
    "title": "Unprocessable",
    "status": 422,
    "detail": "There is no model at /nowhere.",
    "code": "model_not_found",
    "param": "model.path",
}


def answering(*answers: httpx.Response | Exception) -> tuple[Client, list[httpx.Request]]:
    """A client that gets these answers, one after the other, and what it asked."""
    requests: list[httpx.Request] = []
    left: Iterator[httpx.Response | Exception] = iter(answers)

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        reply = next(left)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return Client("http://server/", transport=httpx.MockTransport(answer)), requests


def state(value: str) -> httpx.Response:
    return httpx.Response(200, json={"id": "job-1", "state": value})


def test_submit_posts_the_specification_and_returns_the_job() -> None:
    client, requests = answering(httpx.Response(201, json={"id": "job-1"}))
    assert client.submit({"method": "impact"}) == {"id": "job-1"}
    assert (requests[0].method, str(requests[0].url)) == ("POST", "http://server/v1/jobs")
    assert json.loads(requests[0].content) == {"method": "impact"}


def test_an_upload_sends_the_file_as_it_is_and_says_how_far_it_is(tmp_path: Path) -> None:
    client, requests = answering(httpx.Response(201, json={"id": "ds-1"}))
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"x" * 600_000)
    progress: list[tuple[int, int]] = []
    made = client.upload_dataset(
        file, "jsonl", text_field="body", on_progress=lambda *each: progress.append(each)
    )
    assert made == {"id": "ds-1"}
    assert str(requests[0].url) == "http://server/v1/datasets?format=jsonl&text_field=body"
    assert requests[0].read() == file.read_bytes()
    assert requests[0].headers["content-length"] == "600000"
    assert "transfer-encoding" not in requests[0].headers
    assert [done for done, _ in progress] == [262_144, 524_288, 600_000]
    assert {total for _, total in progress} == {600_000}


def test_datasets_are_listed_read_and_deleted() -> None:
    page: dict[str, Any] = {"datasets": [], "next_cursor": None}
    answers = (httpx.Response(200, json=page), httpx.Response(200, json={"id": "ds-1"}))
    client, requests = answering(*answers, httpx.Response(204))
    assert client.datasets(5, "next") == page
    assert client.dataset("ds-1") == {"id": "ds-1"}
    client.delete_dataset("ds-1/..")
    assert [f"{each.method} {each.url.raw_path.decode()}" for each in requests] == [
        "GET /v1/datasets?limit=5&cursor=next",
        "GET /v1/datasets/ds-1",
        "DELETE /v1/datasets/ds-1%2F..",
    ]


class TestLostSubmissions:
    @pytest.fixture(autouse=True)
    def no_pauses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("service.client.client.REPEAT_SECONDS", 0.0)

    @pytest.mark.parametrize(
        "lost",
        [
            httpx.ReadTimeout("slow"),
            httpx.RemoteProtocolError("cut"),
            httpx.Response(503, json={"code": "database_unavailable", "detail": "away"}),
            httpx.Response(502, html="<p>bad gateway</p>"),
        ],
    )
    def test_are_repeated_under_the_same_key(self, lost: httpx.Response | Exception) -> None:
        made = httpx.Response(200, json={"id": "job-1"})
        client, requests = answering(lost, httpx.ConnectError("refused"), made)
        assert client.submit({"method": "impact"}) == {"id": "job-1"}
        keys = {request.headers["Idempotency-Key"] for request in requests}
        assert (len(requests), len(keys)) == (3, 1)

    def test_each_job_has_a_key_of_its_own(self) -> None:
        made = httpx.Response(201, json={"id": "job-1"})
        client, requests = answering(made, made, made)
        for key in (None, None, "mine"):
            client.submit({}, idempotency_key=key)
        keys = [request.headers["Idempotency-Key"] for request in requests]
        assert len(set(keys)) == 3
        assert keys[2] == "mine"

    def test_are_given_up_in_the_end(self) -> None:
        client, _ = answering(httpx.ReadTimeout("slow"))
        with pytest.raises(ApiUnreachable, match="slow"):
            client.submit({}, patience_seconds=0)

    @pytest.mark.parametrize(
        "answer",
        [
            httpx.ConnectError("refused"),
            httpx.Response(422, json=PROBLEM),
            httpx.Response(503, json={"code": "bucket_missing", "detail": "none"}),
        ],
    )
    def test_what_made_no_job_is_said_at_once(self, answer: httpx.Response | Exception) -> None:
        client, requests = answering(answer)
        with pytest.raises(ClientError):
            client.submit({})
        assert len(requests) == 1

    def test_a_refusal_ends_the_repetition(self) -> None:
        client, _ = answering(httpx.ReadTimeout("slow"), httpx.Response(422, json=PROBLEM))
        with pytest.raises(ApiProblem, match="no model"):
            client.submit({})


def test_jobs_asks_for_a_page_of_the_wanted_states() -> None:
    page: dict[str, Any] = {"jobs": [], "next_cursor": None}
    client, requests = answering(httpx.Response(200, json=page))
    assert client.jobs(5, "c", [JobState.QUEUED, JobState.RUNNING]) == page
    query = requests[0].url.params
    assert query.get_list("state") == ["queued", "running"]
    assert (query["limit"], query["cursor"]) == ("5", "c")


@pytest.mark.parametrize(
    ("call", "method", "path", "body"),
    [
        (lambda c: c.estimate({}), "POST", "/v1/estimates", {}),
        (lambda c: c.job("job-1"), "GET", "/v1/jobs/job-1", {}),
        (lambda c: c.cancel("job-1"), "POST", "/v1/jobs/job-1/cancel", {}),
        (lambda c: c.retry("job-1"), "POST", "/v1/jobs/job-1/retry", {}),
        (lambda c: c.delete("job-1"), "DELETE", "/v1/jobs/job-1", {}),
        (lambda c: c.report("job-1"), "GET", "/v1/jobs/job-1/report", {}),
        (lambda c: c.events("job-1", 7), "GET", "/v1/jobs/job-1/events", {"events": []}),
        (lambda c: c.artifacts("job-1"), "GET", "/v1/jobs/job-1/artifacts", {"artifacts": []}),
        (lambda c: c.job("../x?y"), "GET", "/v1/jobs/..%2Fx%3Fy", {}),
    ],
)
def test_each_method_has_its_route(
    call: Callable[[Client], object], method: str, path: str, body: dict[str, Any]
) -> None:
    client, requests = answering(httpx.Response(200, json=body))
    call(client)
    assert requests[0].method == method
    assert requests[0].url.raw_path.decode().split("?")[0] == path


def test_a_deletion_has_no_answer() -> None:
    client, _ = answering(httpx.Response(204))
    client.delete("job-1")


def test_a_problem_is_raised_with_its_code_param_and_status() -> None:
    client, _ = answering(httpx.Response(422, json=PROBLEM))
    with pytest.raises(ApiProblem) as caught:
        client.submit({})
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model.path"
    assert caught.value.status == 422
    assert str(caught.value) == "There is no model at /nowhere."


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, html="<p>some other server</p>"),
        httpx.Response(404, html="<p>not found</p>"),
        httpx.Response(302, headers={"Location": "http://login/"}),
        httpx.Response(200, json=[1]),
        httpx.Response(500, json={"error": "?"}),
    ],
)
def test_a_server_that_is_not_eigenpress_is_said_to_be_none(answer: httpx.Response) -> None:
    client, _ = answering(answer)
    with pytest.raises(ApiProblem, match="is not an Eigenpress server") as caught:
        client.job("job-1")
    assert caught.value.code == "unexpected_answer"


def test_a_list_that_is_missing_is_not_taken_for_an_empty_one() -> None:
    client, _ = answering(httpx.Response(200, json={"items": []}))
    with pytest.raises(ApiProblem, match="is not an Eigenpress server"):
        client.artifacts("job-1")


def test_nobody_listening_is_unreachable_and_names_the_address() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with Client(url) as client, pytest.raises(ApiUnreachable, match=f"no answer from {url}"):
            client.job("job-1")


@pytest.mark.parametrize("url", ["localhost:8400", "ftp://host", "http://[", "nonsense"])
def test_an_address_that_is_none_is_unreachable(url: str) -> None:
    with pytest.raises(ApiUnreachable):
        Client(url).job("job-1")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_proxy_is_not_asked_for_this_machine(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("http_proxy", "http://no-such-proxy.invalid:3128")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        with pytest.raises(ApiUnreachable, match="refused"):
            Client(f"http://{host}:{probe.getsockname()[1]}").job("job-1")


def test_wait_reports_every_look_and_returns_the_ended_job() -> None:
    client, _ = answering(state("queued"), state("running"), state("failed"))
    seen: list[str] = []
    job = client.wait("job-1", lambda job: seen.append(job["state"]), poll_seconds=0)
    assert seen == ["queued", "running", "failed"]
    assert job["state"] == "failed"


def test_wait_outlasts_a_server_that_is_away_for_a_while() -> None:
    away: list[httpx.Response | Exception] = [
        httpx.ConnectError("refused"),
        httpx.Response(503, json={"code": "storage_unavailable", "detail": "away"}),
    ]
    client, _ = answering(state("running"), *away, state("succeeded"))
    assert client.wait("job-1", poll_seconds=0)["state"] == "succeeded"


def test_wait_gives_up_once_its_patience_is_spent() -> None:
    client, _ = answering(state("running"), httpx.ConnectError("refused"))
    with pytest.raises(ApiUnreachable):
        client.wait("job-1", poll_seconds=0, patience_seconds=0)


def test_wait_does_not_outlast_a_refusal() -> None:
    client, _ = answering(httpx.Response(404, json={"code": "job_not_found", "detail": "none"}))
    with pytest.raises(ApiProblem, match="none"):
        client.wait("job-1", poll_seconds=0)

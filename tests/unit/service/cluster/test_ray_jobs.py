"""The fake cluster passes the contract tests; the real client copes with errors of Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cluster.ray_jobs import Active, Ended, RayCluster, Unknown, exit_code_in
from service.domain.placement import Machine
from service.errors import ClusterUnavailable, SubmissionRefused
from tests.fixtures.cluster import ClusterContract, FakeCluster

Handler = Callable[[httpx.Request], httpx.Response]


class TestFakeCluster(ClusterContract):
    @pytest.fixture
    def running(self) -> FakeCluster:
        return FakeCluster()

    @pytest.fixture
    def ending(self) -> FakeCluster:
        return FakeCluster(ending=True)

    @pytest.fixture
    def unreachable(self) -> FakeCluster:
        cluster = FakeCluster()
        cluster.down = True
        return cluster


def cluster_answering(handler: Handler) -> RayCluster:
    return RayCluster(
        "http://ray.test:8265/", "python -m workers.attempt.driver", httpx.MockTransport(handler)
    )


@pytest.fixture(autouse=True)
def no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' own token stays out of this file's."""
    monkeypatch.delenv("RAY_AUTH_TOKEN")


def test_a_submission_carries_ids_and_nothing_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIGENPRESS_S3_SECRET_ACCESS_KEY", "hush")
    requests: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(200, json={"submission_id": "job-x-2"})

    cluster_answering(answer).submit("job-x", 2, "my job")
    (request,) = requests
    assert str(request.url) == "http://ray.test:8265/api/jobs/"
    assert "authorization" not in request.headers
    assert json.loads(request.content) == {
        "entrypoint": "python -m workers.attempt.driver job-x 2; "
        'code=$?; echo "The driver\'s exit code: $code"; exit $code',
        "submission_id": "job-x-2",
        "metadata": {
            "job_name": "my job",
            "eigenpress_job": "job-x",
            "eigenpress_attempt": "2",
        },
    }


def test_the_token_of_a_guarded_cluster_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0ken")
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return httpx.Response(200, json={"ray_version": "2.60.0"})

    cluster_answering(answer).check()
    assert seen == ["Bearer t0ken"]


def test_a_token_may_lie_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t0ken\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    seen: list[str | None] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return httpx.Response(200, json={"ray_version": "2.60.0"})

    cluster_answering(answer).check()
    assert seen == ["Bearer t0ken"]
    (tmp_path / "token").unlink()
    with pytest.raises(ClusterUnavailable, match="cannot be read"):
        cluster_answering(answer)


def test_a_refused_submission_says_why() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(400, text="Traceback ...\nValueError: bad entrypoint\n")
        return httpx.Response(404)

    with pytest.raises(SubmissionRefused, match="ValueError: bad entrypoint"):
        cluster_answering(answer).submit("job-x", 1)


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: httpx.Response(500, text="Traceback ...\nRpcError: gcs is away"),
        lambda _: httpx.Response(401, text="no token"),
        lambda _: httpx.Response(502),
    ],
)
def test_an_answer_that_is_an_error_is_unavailable(answer: Handler) -> None:
    cluster = cluster_answering(answer)
    with pytest.raises(ClusterUnavailable, match=r"http://ray\.test:8265 answers"):
        cluster.status("job-x", 1)
    with pytest.raises(ClusterUnavailable):
        cluster.submit("job-x", 1)


def test_a_submission_that_found_no_agent_is_unavailable() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(500, text="Traceback ...\nTimeoutError: no agent\n.\n")
        return httpx.Response(404)

    with pytest.raises(ClusterUnavailable, match="TimeoutError: no agent"):
        cluster_answering(answer).submit("job-x", 1)


@pytest.mark.parametrize(
    "error", [httpx.ReadTimeout(""), httpx.ConnectError("refused"), httpx.RemoteProtocolError("")]
)
def test_every_way_of_not_answering_is_unavailable(error: Exception) -> None:
    def answer(_: httpx.Request) -> httpx.Response:
        raise error

    with pytest.raises(ClusterUnavailable, match=r"does not answer: \w"):
        cluster_answering(answer).check()


@pytest.mark.parametrize(
    "response", [httpx.Response(200, text="<html>"), httpx.Response(200, json={})]
)
def test_another_server_at_the_address_is_unavailable(response: httpx.Response) -> None:
    with pytest.raises(ClusterUnavailable, match="not a Ray dashboard"):
        cluster_answering(lambda _: response).check()


def test_a_long_line_of_a_log_is_cut() -> None:
    cluster = cluster_answering(lambda _: httpx.Response(200, json={"logs": "x" * 10**6}))
    assert cluster.log_tail("job-x", 1) == "x" * 1000


@pytest.mark.parametrize(
    ("response", "status"),
    [
        (httpx.Response(404), Unknown()),
        (httpx.Response(200, json={"status": "PENDING"}), Active()),
        (httpx.Response(200, json={"status": "RUNNING"}), Active()),
        (
            httpx.Response(200, json={"status": "STOPPED", "message": None, "error_type": None}),
            Ended("STOPPED"),
        ),
        (
            httpx.Response(
                200, json={"status": "FAILED", "message": "died", "error_type": "SOME_ERROR"}
            ),
            Ended("FAILED", "SOME_ERROR", "died"),
        ),
    ],
)
def test_what_ray_says_of_an_attempt(response: httpx.Response, status: object) -> None:
    assert cluster_answering(lambda _: response).status("job-x", 1) == status


@pytest.mark.parametrize(
    ("printed", "code"),
    [
        ("done\nThe driver's exit code: 0", 0),
        ("no newline at the endThe driver's exit code: 137\n", 137),
        ("The driver's exit code: 1\nand more", None),
        ("", None),
    ],
)
def test_an_exit_code_is_at_the_end_of_the_log(printed: str, code: int | None) -> None:
    assert exit_code_in(printed) == code


def test_an_agent_that_fails_to_forget_is_unavailable() -> None:
    cluster = cluster_answering(lambda _: httpx.Response(500, text="TimeoutError: no agent"))
    with pytest.raises(ClusterUnavailable, match="TimeoutError: no agent"):
        cluster.forget("job-x", 1)


def dashboard_s_view(states: dict[str, str], reports: dict[str, dict[str, Any]]) -> Any:
    """What Ray's dashboard answers of machines with these states and reports of their agents."""
    # These take half a second.
    from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]
    from ray.dashboard.modules.node.datacenter import DataOrganizer, DataSource
    from ray.dashboard.modules.node.node_head import _gcs_node_info_to_dict
    from ray.dashboard.utils import to_google_style

    nodes = {}
    for name, state in states.items():
        info = GcsNodeInfo(node_id=name.encode(), state=state)
        info.resources_total.update({"CPU": 8, "GPU": 2, "accelerator_type:H100": 1})
        info.labels.update({"ray.io/accelerator-type": "H100"} if name in reports else {})
        nodes[name] = _gcs_node_info_to_dict(info)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DataSource, "nodes", nodes)
        patch.setattr(DataSource, "node_physical_stats", reports)
        summary = asyncio.run(DataOrganizer.get_all_node_summary())  # type: ignore[no-untyped-call]
    data = to_google_style({"summary": summary})  # type: ignore[no-untyped-call]
    return {"result": True, "msg": "", "data": data}


def test_machines_are_those_that_are_alive_with_what_they_have_reported() -> None:
    reported = {
        "mem": [64 << 30, 1, 99.9, 2],
        "disk": {"/": {"total": 1 << 40}, "/tmp/ray": {"total": 1 << 39}},
        "gpus": [{"memoryTotal": 81559}, {"memoryTotal": 40960}],
    }
    states = {"first": "ALIVE", "new": "ALIVE", "lost": "DEAD"}
    answer = dashboard_s_view(states, {"first": reported})
    asked: list[str] = []

    def respond(request: httpx.Request) -> httpx.Response:
        asked.append(str(request.url))
        return httpx.Response(200, json=answer)

    first, new = cluster_answering(respond).machines()
    assert asked == ["http://ray.test:8265/nodes?view=summary"]
    assert (first.resources["CPU"], first.resources["GPU"]) == (8, 2)
    sizes = {"memory_bytes": 64 << 30, "disk_bytes": 1 << 39, "gpu_bytes": 40 << 30}
    assert first == Machine(first.resources, "H100", **sizes)
    assert new == Machine(first.resources)


def test_the_disk_that_a_pod_makes_up_is_not_reported() -> None:
    answer = dashboard_s_view({"pod": "ALIVE"}, {"pod": {"disk": {"/": {"total": 1}}}})
    (pod,) = cluster_answering(lambda _: httpx.Response(200, json=answer)).machines()
    assert pod.disk_bytes is None


@pytest.mark.parametrize(
    "answer",
    [{}, [], {"data": None}, {"data": {"summary": [{"raylet": {"state": "ALIVE"}}]}}],
    ids=str,
)
def test_a_dashboard_with_other_words_for_machines_is_unavailable(answer: object) -> None:
    cluster = cluster_answering(lambda _: httpx.Response(200, json=answer))
    with pytest.raises(ClusterUnavailable, match="does not say which machines it has"):
        cluster.machines()

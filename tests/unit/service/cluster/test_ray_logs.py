"""Ray's logs, against scripted answers of its dashboard."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from service.cluster.ray_logs import LogReader, ray_logs
from service.errors import ClusterUnavailable, LogNotFound

NAME = "job-1-2"
ACTORS = [
    {"actor_id": "a0", "name": f"{NAME}/worker-0"},
    {"actor_id": "a1", "name": f"{NAME}/worker-11"},
    {"actor_id": "a2", "name": "something else"},
    {"actor_id": "a3", "name": None},
]


def logs(answer: Callable[[httpx.Request], httpx.Response]) -> dict[str, LogReader]:
    http = httpx.Client(base_url="http://ray", transport=httpx.MockTransport(answer))
    return ray_logs(http, NAME)


def listed(*_: object) -> httpx.Response:
    return httpx.Response(200, json={"data": {"result": {"result": ACTORS}}})


def described(*_: object) -> httpx.Response:
    return httpx.Response(200, json={"driver_node_id": "n1"})


def sending(response: httpx.Response | Exception) -> dict[str, LogReader]:
    """The logs of a cluster that answers this when one is read."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path != "/api/v0/logs/file":
            return listed() if "actors" in request.url.path else described()
        if isinstance(response, Exception):
            raise response
        return response

    return logs(answer)


def test_driver_and_workers_are_asked_for_by_their_names() -> None:
    asked: list[dict[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == f"/api/jobs/{NAME}":
            return described()
        asked.append(dict(request.url.params))
        return listed() if "actors" in request.url.path else httpx.Response(200, text="printed")

    found = logs(answer)
    assert asked[0]["filter_keys"] == "ray_namespace"
    assert asked[0]["filter_values"] == NAME
    assert list(found) == ["driver", "worker-0", "worker-11"]
    assert b"".join(found["driver"]()) == b"printed"
    assert b"".join(found["worker-11"]()) == b"printed"
    whole = {"lines": "-1", "timeout": asked[1]["timeout"]}
    assert asked[1:] == [
        whole | {"node_id": "n1", "filename": f"job-driver-{NAME}.log"},
        whole | {"actor_id": "a1", "suffix": "err"},
    ]


def test_a_log_that_ray_cannot_read_is_not_there() -> None:
    text = "Traceback ...\nException: Node n is not reachable."
    with pytest.raises(LogNotFound, match=r"cannot read the log\. Exception: Node n is not"):
        list(sending(httpx.Response(500, text=text))["worker-0"]())


@pytest.mark.parametrize(
    "trouble",
    [httpx.ConnectError("refused"), httpx.ReadTimeout(""), httpx.Response(429, text="too many")],
)
def test_a_dashboard_that_does_not_send_is_unavailable(
    trouble: httpx.Response | Exception,
) -> None:
    with pytest.raises(ClusterUnavailable, match=r"does not send the log: \w"):
        list(sending(trouble)["driver"]())


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(500, text="no"),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"data": None}),
        httpx.Response(200, json=[]),
    ],
)
def test_a_dashboard_that_lists_no_actors_is_unavailable(answer: httpx.Response) -> None:
    with pytest.raises(ClusterUnavailable, match=r"does not list its actors: .+"):
        logs(lambda _: answer)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (httpx.Response(404, text="no such job"), "does not know the attempt"),
        (httpx.Response(200, json={"driver_node_id": None}), "has not begun"),
    ],
)
def test_a_driver_without_a_machine_has_no_log(answer: httpx.Response, reason: str) -> None:
    found = logs(lambda request: listed() if "actors" in request.url.path else answer)
    with pytest.raises(LogNotFound, match=reason):
        list(found["driver"]())


@pytest.mark.parametrize("answer", [httpx.Response(500), httpx.Response(200, text="<html>")])
def test_a_dashboard_that_does_not_describe_the_driver_is_unavailable(
    answer: httpx.Response,
) -> None:
    found = logs(lambda request: listed() if "actors" in request.url.path else answer)
    with pytest.raises(ClusterUnavailable, match=r"does not describe the driver: .+"):
        list(found["driver"]())

"""Events and logs are followed over interruptions; frames are read from the lines of a stream."""

from __future__ import annotations

import doctest
import json
from typing import Any

import httpx
import pytest

from service.client import following
from service.client.client import ApiProblem, ApiUnreachable
from service.client.following import END, ENDED, Frame, frames
from tests.unit.service.client.test_client import answering


def test_the_examples_hold() -> None:
    assert doctest.testmod(following).failed == 0


def test_a_value_may_have_colons_and_no_space() -> None:
    assert list(frames(["event:x", 'data:{"a": 1}', "", ""])) == [Frame("x", '{"a": 1}')]


def test_a_type_holds_for_one_frame() -> None:
    lines = ["event: a", "data: 1", "", "data: 2", ""]
    assert list(frames(lines)) == [Frame("a", "1"), Frame("", "2")]


def test_a_stream_that_ends_at_once_has_an_end() -> None:
    assert [frame.type for frame in frames(ENDED)] == [END]


def event(number: int) -> str:
    data = json.dumps({"id": number, "type": "numbered"})
    return f"event: numbered\ndata: {data}\nid: {number}\n\n"


def stream(text: str) -> httpx.Response:
    headers = {"Content-Type": "text/event-stream; charset=utf-8"}
    return httpx.Response(200, text=text, headers=headers)


ENDING = 'event: end\ndata: {"state": "succeeded", "next_after": 3}\n\n'


class TestFollowedEvents:
    @pytest.fixture(autouse=True)
    def no_pauses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("service.client.following.RECONNECT_SECONDS", 0.0)

    def test_come_until_the_end(self) -> None:
        text = "retry: 1\n\n" + event(1) + ": ping\n\n" + event(2) + ENDING
        client, requests = answering(stream(text))
        assert [each["id"] for each in following.events(client, "job-1")] == [1, 2]
        assert str(requests[0].url) == "http://server/v1/jobs/job-1/events"
        assert requests[0].headers["Accept"] == "text/event-stream"

    def test_come_once_over_interruptions(self) -> None:
        cut = event(2) + event(3)[:-1]  # a frame that did not arrive whole
        client, requests = answering(
            stream(event(1)),
            httpx.ConnectError("refused"),
            httpx.Response(503, json={"code": "followers_full", "detail": "full"}),
            httpx.Response(429, json={"code": "too_many_followers", "detail": "too many"}),
            stream(cut),
            stream(event(3)),
            httpx.Response(204),
        )
        assert [each["id"] for each in following.events(client, "job-1", after=0)] == [1, 2, 3]
        sent = [request.headers["Last-Event-ID"] for request in requests]
        assert sent == ["0", "1", "1", "1", "1", "2", "3"]

    def test_end_with_a_problem_that_is_no_outage(self) -> None:
        gone = httpx.Response(404, json={"code": "job_not_found", "detail": "no job"})
        client, _ = answering(stream(event(1)), gone)
        found = following.events(client, "job-1")
        assert next(found)["id"] == 1
        with pytest.raises(ApiProblem, match="no job"):
            next(found)

    def test_end_with_an_outage_that_lasts(self) -> None:
        client, _ = answering(httpx.ReadTimeout("slow"))
        with pytest.raises(ApiUnreachable, match="slow"):
            next(following.events(client, "job-1", patience_seconds=0))

    @pytest.mark.parametrize("answer", [{"json": {"events": []}}, {"html": "<p>hello</p>"}])
    def test_are_no_answer_of_another_kind(self, answer: dict[str, Any]) -> None:
        client, _ = answering(httpx.Response(200, **answer))
        with pytest.raises(ApiProblem, match="not an Eigenpress server"):
            next(following.events(client, "job-1"))


def log_page(text: str, after: int, *, attempt: int = 1, complete: bool = False) -> httpx.Response:
    page = {"attempt": attempt, "text": text, "next_after": after, "complete": complete}
    return httpx.Response(200, json=page)


def test_a_log_is_followed_in_one_attempt_to_its_end() -> None:
    client, requests = answering(
        log_page("", 0, attempt=0),
        log_page("one\n", 4),
        log_page("", 4),
        httpx.Response(503, json={"code": "cluster_unavailable", "detail": "away"}),
        log_page("two\n", 8, complete=True),
    )
    pages = following.logs(client, "job-1", source="worker-1", poll_seconds=0)
    assert [page["text"] for page in pages] == ["", "one\n", "", "two\n"]
    asked = [dict(request.url.params) for request in requests]
    assert asked[1] == {"source": "worker-1", "after": "0"}
    assert asked[-1] == {"source": "worker-1", "after": "4", "attempt": "1"}


def test_a_log_is_not_followed_beyond_the_patience() -> None:
    client, _ = answering(httpx.Response(503, json={"code": "cluster_unavailable", "detail": "-"}))
    with pytest.raises(ApiProblem):
        next(following.logs(client, "job-1", poll_seconds=0, patience_seconds=0))

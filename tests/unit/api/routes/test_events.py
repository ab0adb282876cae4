"""Following a job's events over a real connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from starlette.types import Message

from api import event_stream
from api.access import NO_KEY_ID
from api.event_stream import EventStream, OpenStreams, Permit, wants_stream
from api.feed import Feed
from service.domain.job import DEFAULT_TENANT
from service.domain.principal import Principal, Scope
from service.store.store import Store
from tests.fixtures.jobs import small_spec
from tests.fixtures.waiting import wait_until

STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def job_id(store: Store) -> str:
    return store.users(DEFAULT_TENANT).create(small_spec()).id


@contextmanager
def following(client: httpx.Client, job_id: str, **headers: str) -> Iterator[Iterator[str]]:
    """The lines of a stream."""
    with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM | headers) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        yield response.iter_lines()


def next_frame(lines: Iterator[str]) -> dict[str, str]:
    """The fields of the next frame that is no comment; empty at the end of the stream."""
    frame: dict[str, str] = {}
    for line in lines:
        if not line and frame:
            return frame
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            frame[name] = value
    return frame


def test_a_stream_has_the_events_of_the_page_and_an_end(
    live: httpx.Client, store: Store, job_id: str
) -> None:
    with following(live, job_id) as lines:
        assert next_frame(lines) == {"retry": "1000"}
        frames = [next_frame(lines)]
        store.users(DEFAULT_TENANT).cancel(job_id)
        frames.append(next_frame(lines))
        end = next_frame(lines)
        assert next_frame(lines) == {}
    page = live.get(f"/v1/jobs/{job_id}/events").json()
    assert [json.loads(frame["data"]) for frame in frames] == page["events"]
    assert [frame["id"] for frame in frames] == [str(each["id"]) for each in page["events"]]
    assert [frame["event"] for frame in frames] == ["job.queued", "job.cancelled"]
    assert "id" not in end
    assert end["event"] == "end"
    assert json.loads(end["data"]) == {"state": "cancelled", "next_after": page["next_after"]}


def test_a_follower_goes_on_after_a_break(live: httpx.Client, store: Store, job_id: str) -> None:
    (queued,) = store.records.events(job_id)
    store.users(DEFAULT_TENANT).cancel(job_id)
    # A browser repeats the address, and so a stale `after`.
    path = f"/v1/jobs/{job_id}/events?after=0"
    answer = live.get(path, headers=STREAM | {"Last-Event-ID": str(queued.id)})
    assert answer.text.count("event: job.cancelled") == 1
    assert "job.queued" not in answer.text


@pytest.mark.parametrize("where", ["header", "query"])
def test_nothing_more_to_come_is_204(
    client: TestClient, store: Store, job_id: str, where: str
) -> None:
    store.users(DEFAULT_TENANT).cancel(job_id)
    last = store.records.events(job_id)[-1].id
    header = {"Last-Event-ID": str(last)} if where == "header" else {}
    query = {"after": last} if where == "query" else {}
    path = f"/v1/jobs/{job_id}/events"
    answer = client.get(path, headers=STREAM | header, params=query)
    assert (answer.status_code, answer.content) == (204, b"")
    assert client.get(path, params={"after": last}).json()["events"] == []


def test_an_unknown_job_is_a_problem(client: TestClient) -> None:
    answer = client.get("/v1/jobs/job-unknown/events", headers=STREAM)
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


@pytest.mark.parametrize("given", ["x", "-1", str(2**63)])
def test_an_id_that_cannot_be_is_refused(client: TestClient, job_id: str, given: str) -> None:
    headers = STREAM | {"Last-Event-ID": given}
    answer = client.get(f"/v1/jobs/{job_id}/events", headers=headers)
    assert (answer.status_code, answer.json()["param"]) == (422, "Last-Event-ID")


def test_a_page_is_what_others_get(client: TestClient, job_id: str) -> None:
    answer = client.get(f"/v1/jobs/{job_id}/events")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["vary"] == "Accept"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("text/event-stream", True),
        ("application/json;q=0.5, Text/Event-Stream; q=0.9", True),
        ("text/event-stream;q=0", False),
        ("*/*", False),
        ("application/json", False),
        ("", False),
    ],
)
def test_only_a_client_that_names_the_type_gets_a_stream(accept: str, wanted: bool) -> None:
    assert wants_stream(accept) is wanted


@pytest.mark.parametrize(
    ("bound", "status", "code"),
    [
        ("MAX_FOLLOWERS_PER_TENANT", 429, "too_many_followers"),
        ("MAX_FOLLOWERS", 503, "followers_full"),
    ],
)
def test_streams_are_bounded_and_end_with_their_connection(
    live: httpx.Client,
    job_id: str,
    monkeypatch: pytest.MonkeyPatch,
    bound: str,
    status: int,
    code: str,
) -> None:
    monkeypatch.setattr(event_stream, bound, 1)
    path = f"/v1/jobs/{job_id}/events"
    with following(live, job_id) as lines:
        assert next_frame(lines)
        refusal = live.get(path, headers=STREAM)
        assert (refusal.status_code, refusal.json()["code"]) == (status, code)
        assert int(refusal.headers["retry-after"]) > 0
        assert live.get(path).status_code == 200  # a page

    def is_free() -> bool:
        with live.stream("GET", path, headers=STREAM) as response:
            return response.status_code == 200

    wait_until(is_free)


def test_the_document_names_both_answers(client: TestClient) -> None:
    document: dict[str, Any] = client.get("/openapi.json").json()
    answers = document["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]
    content = answers["200"]["content"]
    assert content["application/json"]["schema"]["$ref"].endswith("/EventPage")
    assert content["text/event-stream"]["schema"] == {"type": "string"}
    assert content["text/event-stream"]["example"].startswith("event: ")
    assert {"204", "404", "422", "429", "503"} <= answers.keys()


def test_a_client_that_takes_nothing_is_dropped(
    store: Store, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "SEND_SECONDS", 0.01)
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        if len(sent) > 1:
            await asyncio.Event().wait()

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    async def answer() -> None:
        async with asyncio.timeout(20), Feed(store.news.after) as feed:
            permit = Permit(Principal(NO_KEY_ID, DEFAULT_TENANT, Scope.READER))
            frames = feed.follow(store.users(DEFAULT_TENANT).events, job_id, 0, permit)
            streams = OpenStreams(store.keys.valid)
            stream = EventStream(frames, streams, permit)
            await stream({"type": "http", "asgi": {"spec_version": "2.3"}}, receive, send)
            assert streams.count() == 0
            streams.check_room(DEFAULT_TENANT)
            assert not feed._jobs
            assert [frame async for frame in frames] == []

    asyncio.run(answer())
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]

"""Followers get every event once, in order, from one reader, on both databases."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import pytest

from api import feed as feed_module
from api.feed import Feed
from api.frames import HEARTBEAT
from service.domain.job import DEFAULT_TENANT, Event
from service.domain.states import JobState
from service.errors import DatabaseUnavailable, StorageUnavailable
from service.store.news import NewEvents
from service.store.store import Store
from tests.fixtures.jobs import at_once, small_spec
from tests.fixtures.streams import permit, run_within

SECONDS = 20.0
run = partial(run_within, SECONDS)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> Store:
    store: Store = request.getfixturevalue(
        "job_store" if request.param == "sqlite" else "postgres_store"
    )
    return store


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(feed_module, "PAUSE_SECONDS", 0.01)


class Looks:
    """Looks for news as the store does, counted; they fail while `trouble` is set."""

    def __init__(self, store: Store) -> None:
        self.made: list[dict[str, int]] = []
        self.trouble: Exception | None = None
        self._store = store

    def __call__(self, cursors: Mapping[str, int], *, limit: int = 1000) -> NewEvents:
        self.made.append(dict(cursors))
        if self.trouble:
            raise self.trouble
        return self._store.news.after(cursors, limit=limit)


class Running:
    """A job whose attempt records numbered events."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.id = store.users(DEFAULT_TENANT).create(small_spec()).id
        claimed = store.claims.claim()
        assert claimed is not None
        self.attempt = claimed.attempt
        self._number = 0

    def record(self, count: int = 1) -> None:
        for _ in range(count):
            self._number += 1
            self._store.attempts.record(self.id, self.attempt, "numbered", str(self._number))

    def fail(self) -> None:
        self._store.attempts.fail(self.id, self.attempt, StorageUnavailable().failure(), at_once(1))

    @property
    def events(self) -> list[int]:
        return [each.id for each in self._store.records.events(self.id, limit=10_000)]


class Stream:
    """What a client makes of a stream."""

    def __init__(self, feed: Feed, store: Store, job_id: str, after: int = 0) -> None:
        users = store.users(DEFAULT_TENANT)
        self.permit = permit()
        self.frames: AsyncGenerator[bytes, None] = feed.follow(
            users.events, job_id, after, self.permit
        )
        self.ids: list[int] = []
        self.beats = 0
        self.end: dict[str, Any] | None = None

    async def read(self, until: int | None = None) -> Stream:
        """Read until the event with this id has come, or to the end."""
        async for frames in self.frames:
            for frame in frames.decode().split("\n\n"):
                self._read(frame)
            self.beats += frames == HEARTBEAT
            if until is not None and until in self.ids:
                return self
        return self

    def _read(self, frame: str) -> None:
        lines = dict(line.split(": ", 1) for line in frame.splitlines())
        if lines.get("event") == "end":
            self.end = json.loads(lines["data"])
        elif "id" in lines:
            event = json.loads(lines["data"])
            assert (str(event["id"]), event["type"]) == (lines["id"], lines["event"])
            self.ids.append(event["id"])


def test_the_past_is_followed_by_the_present_and_the_end(store: Store) -> None:
    async def follow() -> None:
        job = Running(store)
        job.record(2 * feed_module.PAGE_EVENTS)
        async with Feed(store.news.after) as feed:
            stream = await Stream(feed, store, job.id).read(until=job.events[-1])
            assert stream.ids == job.events
            job.record(3)
            await stream.read(until=job.events[-1])
            job.fail()
            await stream.read()
            assert stream.ids == job.events
            assert stream.end == {"state": "failed", "next_after": job.events[-1]}

    run(follow())


def test_followers_from_different_places_get_the_rest_once(store: Store) -> None:
    async def follow() -> None:
        job, other = Running(store), store.users(DEFAULT_TENANT).create(small_spec()).id
        job.record(20)
        async with Feed(store.news.after) as feed:
            places = [0, *job.events, job.events[-1] + 10**6]
            streams = [Stream(feed, store, job.id, after) for after in places]
            waiting = Stream(feed, store, other)
            reads = [asyncio.create_task(each.read()) for each in (*streams, waiting)]
            for _ in range(20):
                await asyncio.to_thread(job.record)
                await asyncio.sleep(0.005)
            job.fail()
            await asyncio.wait(reads[:-1])
            for after, stream in zip(places, streams, strict=True):
                assert stream.ids == [each for each in job.events if each > after]
            assert not reads[-1].done()
            store.users(DEFAULT_TENANT).cancel(other)
            await reads[-1]
            assert len(waiting.ids) == 2

    run(follow())


def test_one_read_serves_all_followers_and_none_is_made_without_them(job_store: Store) -> None:
    async def follow() -> None:
        job, looks = Running(job_store), Looks(job_store)
        async with Feed(looks) as feed:
            await asyncio.sleep(0.05)
            assert looks.made == []
            streams = [Stream(feed, job_store, job.id) for _ in range(50)]
            reads = [asyncio.create_task(each.read()) for each in streams]
            while feed._jobs.get(job.id) is None or len(feed._jobs[job.id].followers) < 50:
                await asyncio.sleep(0.01)
            looks.made.clear()
            job.record()
            job.fail()
            await asyncio.wait(reads)
            assert all(each.ids == job.events for each in streams)
            assert len(looks.made) < 10
            looks.made.clear()
            await asyncio.sleep(0.05)
            assert len(looks.made) <= 1

    run(follow())


def test_a_slow_follower_reads_again_what_did_not_wait_for_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "MAX_WAITING_EVENTS", 5)

    async def follow() -> None:
        job = Running(store)
        async with Feed(store.news.after) as feed:
            slow = await Stream(feed, store, job.id).read(until=job.events[-1])
            job.record()
            await slow.read(until=job.events[-1])  # it has joined the others now
            quick = Stream(feed, store, job.id, job.events[-1])
            reading = asyncio.create_task(quick.read())
            for _ in range(10):
                await asyncio.to_thread(job.record, 3)
                while quick.ids[-1:] != job.events[-1:]:
                    await asyncio.sleep(0.005)
            (one, other) = feed._jobs[job.id].followers
            assert one.missed is not other.missed
            assert max(len(one._waiting), len(other._waiting)) <= 5
            job.fail()
            await slow.read()
            assert slow.ids == job.events
            assert slow.end is not None
            await reading

    run(follow())


def test_a_retried_job_goes_on_where_its_stream_ended(job_store: Store) -> None:
    async def follow() -> None:
        job = Running(job_store)
        job.fail()
        async with Feed(job_store.news.after) as feed:
            first = await Stream(feed, job_store, job.id).read()
            assert first.end is not None
            job_store.users(DEFAULT_TENANT).retry(job.id)
            job_store.users(DEFAULT_TENANT).cancel(job.id)
            second = await Stream(feed, job_store, job.id, first.end["next_after"]).read()
            assert first.ids + second.ids == job.events
            assert second.end is not None
            assert second.end["state"] == "cancelled"

    run(follow())


@pytest.mark.parametrize("removed", [False, True])
def test_a_deleted_job_ends_its_stream(store: Store, removed: bool) -> None:
    async def follow() -> None:
        job = Running(store)
        seen = asyncio.Event()

        def look(cursors: Mapping[str, int], *, limit: int = 1000) -> NewEvents:
            if not seen.is_set():  # by then the job has been deleted
                return NewEvents([], {job.id: store.records.get(job.id).state}, complete=True)
            return store.news.after(cursors, limit=limit)

        async with Feed(look) as feed:
            stream = await Stream(feed, store, job.id).read(until=job.events[-1])
            reading = asyncio.create_task(stream.read())
            while not feed._jobs:
                await asyncio.sleep(0.005)
            last = job.events[-1]
            job.fail()
            store.users(DEFAULT_TENANT).delete(job.id)
            if removed:
                store.claims.remove(job.id)
            seen.set()
            await reading
            assert stream.end is not None
            assert stream.end["state"] == "deleted"
            assert stream.end["next_after"] >= last

    # Between the failure and the deletion the feed would tell of the failure.
    run(follow())


def test_a_follower_whose_job_is_gone_when_it_reads_again_is_told(job_store: Store) -> None:
    async def follow() -> None:
        job = Running(job_store)
        async with Feed(job_store.news.after) as feed:
            stream = Stream(feed, job_store, job.id)
            job.fail()
            job_store.users(DEFAULT_TENANT).delete(job.id)
            await stream.read()
            assert stream.end == {"state": "deleted", "next_after": 0}

    run(follow())


def test_an_outage_delays_events_and_loses_none(
    job_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    async def follow() -> None:
        job, looks = Running(job_store), Looks(job_store)
        async with Feed(looks) as feed:
            stream = await Stream(feed, job_store, job.id).read(until=job.events[-1])
            reading = asyncio.create_task(stream.read())
            while not looks.made:
                await asyncio.sleep(0.005)
            looks.trouble = DatabaseUnavailable("gone")
            looks.made.clear()
            job.record()
            while len(looks.made) < 3:
                await asyncio.sleep(0.005)
            looks.trouble = None
            job.fail()
            await reading
            assert stream.ids == job.events

    run(follow())
    assert [record.message for record in caplog.records] == ["No new events for followers: gone"]


def test_an_outage_during_the_history_is_heartbeats(job_store: Store) -> None:
    async def follow() -> None:
        job, failures = Running(job_store), [DatabaseUnavailable()] * 2
        job.fail()
        users = job_store.users(DEFAULT_TENANT)

        def history(job_id: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
            if failures:
                raise failures.pop()
            return users.events(job_id, after=after, limit=limit)

        async with Feed(job_store.news.after) as feed:
            stream = Stream(feed, job_store, job.id)
            stream.frames = feed.follow(history, job.id, 0, permit())
            await stream.read()
            assert stream.beats == 2
            assert stream.ids == job.events

    run(follow())


def test_silence_is_filled_with_heartbeats(
    job_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "HEARTBEAT_SECONDS", 0.01)

    async def follow() -> None:
        job = Running(job_store)
        async with Feed(job_store.news.after) as feed:
            stream = Stream(feed, job_store, job.id)
            reading = asyncio.create_task(stream.read())
            while stream.beats < 3:
                await asyncio.sleep(0.005)
            job.fail()
            await reading
            assert stream.ids == job.events

    run(follow())


def test_a_closed_feed_ends_its_streams_without_an_end(job_store: Store) -> None:
    async def follow() -> None:
        job = Running(job_store)
        async with Feed(job_store.news.after) as feed:
            stream = await Stream(feed, job_store, job.id).read(until=job.events[-1])
            reading = asyncio.create_task(stream.read())
            while not feed._jobs:
                await asyncio.sleep(0.005)
            feed.close()
            await reading
            late = await Stream(feed, job_store, job.id).read()
            assert (stream.end, late.end, late.ids) == (None, None, [])

    run(follow())


@pytest.mark.parametrize("joined", [True, False])
def test_a_stream_whose_permit_lapses_ends_at_once_without_an_end(
    job_store: Store, joined: bool
) -> None:
    async def follow() -> None:
        job = Running(job_store)
        async with Feed(job_store.news.after) as feed:
            stream, other = (Stream(feed, job_store, job.id) for _ in range(2))
            if joined:
                reads = [asyncio.create_task(each.read()) for each in (stream, other)]
                while not feed._jobs or len(feed._jobs[job.id].followers) < 2:
                    await asyncio.sleep(0.005)
            stream.permit.lapse()
            if joined:
                await reads[0]
                assert not reads[1].done()
                job.fail()
                await reads[1]
                assert other.end is not None
            else:
                await stream.read()
                assert stream.ids == []
            assert stream.end is None

    run(follow())


def test_a_stream_ends_after_its_time(job_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "STREAM_SECONDS", 0.05)
    monkeypatch.setattr(feed_module, "HEARTBEAT_SECONDS", 0.01)

    async def follow() -> None:
        job = Running(job_store)
        async with Feed(job_store.news.after) as feed:
            stream = await Stream(feed, job_store, job.id).read()
            assert (stream.end, stream.ids) == (None, job.events)

    run(follow())


def test_a_follower_who_leaves_leaves_nothing_behind(job_store: Store) -> None:
    async def follow() -> None:
        job = Running(job_store)
        async with Feed(job_store.news.after) as feed:
            stream = Stream(feed, job_store, job.id)
            async with aclosing(stream.frames):
                await stream.read(until=job.events[-1])
                job.record()
                await stream.read(until=job.events[-1])
                assert list(feed._jobs) == [job.id]
            assert not feed._jobs
            assert not feed._followed.is_set()

    run(follow())


def test_what_others_were_offered_while_a_follower_joined_is_read_by_it(job_store: Store) -> None:
    async def follow() -> None:
        job, users = Running(job_store), job_store.users(DEFAULT_TENANT)
        async with Feed(job_store.news.after) as feed:
            first = await Stream(feed, job_store, job.id).read(until=job.events[-1])
            reading = asyncio.create_task(first.read())
            while not feed._jobs:
                await asyncio.sleep(0.005)
            stale = users.events(job.id)
            job.record()
            while first.ids != job.events:
                await asyncio.sleep(0.005)
            answers = [stale]

            def history(job_id: str, *, after: int = 0, limit: int = 1000) -> list[Event]:
                return answers.pop() if answers else users.events(job_id, after=after, limit=limit)

            second = Stream(feed, job_store, job.id)
            second.frames = feed.follow(history, job.id, 0, permit())
            await second.read(until=job.events[-1])
            job.fail()
            await asyncio.gather(reading, second.read())
            assert second.ids == first.ids == job.events

    run(follow())


def test_a_job_has_not_ended_for_a_look_that_did_not_see_all(job_store: Store) -> None:
    async def follow() -> None:
        job = Running(job_store)
        partial = NewEvents([], {job.id: JobState.FAILED}, complete=False)
        looks = [partial]

        def look(cursors: Mapping[str, int], *, limit: int = 1000) -> NewEvents:
            return looks.pop() if looks else job_store.news.after(cursors, limit=limit)

        async with Feed(look) as feed:
            stream = Stream(feed, job_store, job.id)
            reading = asyncio.create_task(stream.read())
            while looks:
                await asyncio.sleep(0.005)
            job.record()
            job.fail()
            await reading
            assert stream.ids == job.events

    run(follow())


def test_a_look_for_followers_who_have_left_is_not_for_those_who_came(job_store: Store) -> None:
    async def follow() -> None:
        job = Running(job_store)
        feed = Feed(job_store.news.after)
        with feed._joined(job.id, 5, permit()) as gone:
            asked = dict(feed._jobs)
        with feed._joined(job.id, 1, permit()) as come:
            feed._hand_out(job_store.news.after({job.id: 0}), asked)
            assert feed._jobs[job.id].after == 1
            assert not gone.take()
            assert not come.take()

    run(follow())

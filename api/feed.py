"""The events of followed jobs, as they happen: one reader of the database, whoever follows.

While somebody follows a job, a task looks for new events of all followed jobs, in one read of the
database, and hands the frames to each follower of their jobs. A follower first reads the job's
history, page by page. What waits for a slow client is bounded: one that falls too far behind reads
the history again, from where it is. So each follower gets every event once, in the order of ids,
and its memory does not depend on how many events there are.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, Self, TypeVar

from anyio import CapacityLimiter, to_thread

from api.event_stream import Permit, set_within
from api.frames import DELETED, FIRST, HEARTBEAT, end_frame, event_frame
from service.domain.job import Event
from service.domain.states import TERMINAL
from service.errors import DatabaseUnavailable, EigenpressError, JobNotFound
from service.store.news import NewEvents

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""The pause between two looks for new events."""
PAUSE_SECONDS = 1.0
"""The pause after a look that failed."""
HEARTBEAT_SECONDS = 15.0
"""A stream is never silent for longer, or proxies would cut it."""
STREAM_SECONDS = 3600.0
"""Then a stream ends and its client follows again."""

MAX_WAITING_EVENTS = 256
"""Events that wait for one follower."""
PAGE_EVENTS = 100
READERS = 4
"""Threads that read the database for followers; other requests have their own."""

Result = TypeVar("Result")


class LookForNews(Protocol):
    def __call__(self, cursors: Mapping[str, int], *, limit: int = ...) -> NewEvents:
        """As `service.store.news.News.after`."""


class ReadHistory(Protocol):
    def __call__(self, job_id: str, *, after: int = ..., limit: int = ...) -> list[Event]:
        """As `service.store.users.Users.events`."""


@dataclass
class _Place:
    """How far a stream has come: the id of the last event in it."""

    after: int


@dataclass(eq=False)
class _Follower:
    """What waits for one client."""

    missed: bool
    """Whether there were events that it has to read from the database."""
    _news: asyncio.Event
    """Set when it has something to do."""
    end: str | None = None
    """The job's state, once it has ended or was deleted."""
    _waiting: deque[tuple[int, bytes]] = field(default_factory=deque)

    def offer(self, frames: Sequence[tuple[int, bytes]]) -> None:
        if len(self._waiting) + len(frames) > MAX_WAITING_EVENTS:
            self.missed = True
            self._waiting.clear()
        if not self.missed:
            self._waiting.extend(frames)
        self._news.set()

    def finish(self, state: str) -> None:
        self.end = state
        self._news.set()

    def wake(self) -> None:
        self._news.set()

    def take(self) -> list[tuple[int, bytes]]:
        """What waits, which then waits no more."""
        taken = list(self._waiting)
        self._waiting.clear()
        self._news.clear()
        return taken

    async def wait(self, seconds: float) -> bool:
        """Whether anything has happened within `seconds`."""
        return await set_within(seconds, self._news)


@dataclass(eq=False)
class _Job:
    """A followed job: the last id that its followers were offered, and these followers."""

    after: int
    followers: set[_Follower] = field(default_factory=set)


class Feed:
    """The followers of one API process; an async context manager. It sleeps if there are none.

    Its methods are for the thread of the event loop, but for `close`.
    """

    def __init__(self, look: LookForNews) -> None:
        self._look = look
        self._jobs: dict[str, _Job] = {}
        self._followed = asyncio.Event()
        self._readers = CapacityLimiter(READERS)
        self._loop = asyncio.get_running_loop()
        self._closed = False

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._close()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def close(self) -> None:
        """End all streams soon; from any thread, or from a handler of a signal."""
        self._loop.call_soon_threadsafe(self._close)

    def _close(self) -> None:
        self._closed = True
        for job in self._jobs.values():
            for follower in job.followers:
                follower.wake()

    async def follow(
        self, history: ReadHistory, job_id: str, after: int, permit: Permit
    ) -> AsyncGenerator[bytes, None]:
        """The frames of the job's events above the id `after`, from the past and as they happen.

        The stream ends with a last frame when the job has ended or was deleted. It also ends,
        without that frame, when the server stops, `permit` lapses, or after `STREAM_SECONDS`.
        """
        until = self._loop.time() + STREAM_SECONDS
        yield FIRST
        place = _Place(after)
        read = partial(history, job_id, limit=PAGE_EVENTS)
        try:
            async for frames in self._pages(read, place, permit):
                yield frames
            with self._joined(job_id, place.after, permit) as follower:
                while not self._must_end(permit) and self._loop.time() < until:
                    if new := [each for each in follower.take() if each[0] > place.after]:
                        place.after = new[-1][0]
                        yield b"".join(frame for _, frame in new)
                    elif follower.missed:
                        follower.missed = False
                        async for frames in self._pages(read, place, permit):
                            yield frames
                    elif follower.end:
                        yield end_frame(follower.end, place.after)
                        return
                    elif not await follower.wait(HEARTBEAT_SECONDS):
                        yield HEARTBEAT
        except JobNotFound:
            yield end_frame(DELETED, place.after)

    async def _pages(
        self, read: Callable[..., list[Event]], place: _Place, permit: Permit
    ) -> AsyncGenerator[bytes, None]:
        """The frames of the job's events so far, page by page; `place` moves along.

        During an outage of the database there are heartbeats instead. Raises JobNotFound.
        """
        while not self._must_end(permit):
            try:
                page = await self._in_thread(partial(read, after=place.after))
            except DatabaseUnavailable:
                yield HEARTBEAT
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            if page:
                place.after = page[-1].id
                yield b"".join(map(event_frame, page))
            if len(page) < PAGE_EVENTS:
                return

    def _must_end(self, permit: Permit) -> bool:
        return self._closed or permit.lapsed

    @contextmanager
    def _joined(self, job_id: str, after: int, permit: Permit) -> Iterator[_Follower]:
        """A follower of the job that has read the events up to the id `after`."""
        job = self._jobs.setdefault(job_id, _Job(after))
        follower = _Follower(job.after > after, permit.news)
        job.followers.add(follower)
        self._followed.set()
        try:
            yield follower
        finally:
            job.followers.remove(follower)
            if not job.followers:
                del self._jobs[job_id]
            if not self._jobs:
                self._followed.clear()

    async def _run(self) -> None:
        failing = False
        while await self._followed.wait():
            asked = dict(self._jobs)
            look = partial(self._look, {job_id: job.after for job_id, job in asked.items()})
            try:
                news = await self._in_thread(look)
            except Exception as error:
                if not failing:
                    defect = None if isinstance(error, EigenpressError) else error
                    log.warning("No new events for followers: %s", error, exc_info=defect)
                failing = True
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            failing = False
            self._hand_out(news, asked)
            if news.complete:
                await asyncio.sleep(LOOK_SECONDS)

    def _hand_out(self, news: NewEvents, asked: Mapping[str, _Job]) -> None:
        # Followers who came after all others had left belong to another `_Job`.
        frames: dict[str, list[tuple[int, bytes]]] = {}
        for event in news.events:
            frames.setdefault(event.job_id, []).append((event.id, event_frame(event)))
        for job_id, job in asked.items():
            if new := frames.get(job_id):
                job.after = new[-1][0]
                for follower in job.followers:
                    follower.offer(new)
            elif job_id not in news.states:
                self._finish(job, DELETED)
            elif news.complete and news.states[job_id] in TERMINAL:
                self._finish(job, news.states[job_id])

    def _finish(self, job: _Job, state: str) -> None:
        for follower in job.followers:
            follower.finish(state)

    async def _in_thread(self, act: Callable[[], Result]) -> Result:
        return await to_thread.run_sync(act, limiter=self._readers)

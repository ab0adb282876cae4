"""Tells open pages which of the jobs on them have changed: one reader of the database for all.

While a list of jobs is open, a task looks at the jobs on all open lists, in one read of the
database. Each list compares what it shows with what is there, so nothing waits for a slow client:
it misses steps in between, and never the last one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, Self, TypeVar

from anyio import CapacityLimiter, to_thread

from api.event_stream import Permit, set_within
from api.feed import HEARTBEAT_SECONDS, PAUSE_SECONDS, READERS, STREAM_SECONDS
from api.frames import FIRST, HEARTBEAT
from service.errors import EigenpressError, FollowersFull
from service.store.news import Progress, Standing

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""The pause between two looks; a list changes no more often."""
MAX_JOBS = 20_000
"""On all open lists of one process."""

Result = TypeVar("Result")


class LookAtJobs(Protocol):
    def __call__(self, job_ids: Collection[str], tenants: Collection[str]) -> Standing:
        """As `service.store.news.News.standing`."""


class OpenList(Protocol):
    """A list of jobs that somebody looks at."""

    tenant: str
    shown: dict[str, Progress]
    """The jobs on the list, as they stand there."""
    newest: str | None
    """The tenant's newest job that was considered for it; None if it shows no new jobs."""

    def frames(self, changed: Collection[str], newest: str | None) -> bytes:
        """What brings these jobs on the page up to date, and shows those up to `newest`.

        It replaces `shown` and `newest`; another thread reads them meanwhile.
        """


@dataclass(eq=False)
class _Watch:
    """A list, and how its jobs stood at the last look."""

    open_list: OpenList
    news: asyncio.Event
    standing: Standing | None = None

    def offer(self, asked: Collection[str], standing: Standing) -> None:
        if not self.open_list.shown.keys() - asked:  # else it has grown since
            self.standing = standing
            self.news.set()

    def changes(self) -> tuple[list[str], str | None]:
        """The jobs that are no longer as they are shown, and the newest one if it is newer."""
        self.news.clear()
        mine, standing = self.open_list, self.standing
        if standing is None:
            return [], None
        changed = [
            each for each, before in mine.shown.items() if standing.progress.get(each) != before
        ]
        newest = standing.newest.get(mine.tenant, "")
        return changed, newest if mine.newest is not None and newest > mine.newest else None

    async def wait(self, seconds: float) -> bool:
        """Whether there was a look within `seconds`, or the stream has to end."""
        return await set_within(seconds, self.news)


class Board:
    """The open lists of one API process; an async context manager. It sleeps if there are none."""

    def __init__(self, look: LookAtJobs) -> None:
        self._look = look
        self._watches: set[_Watch] = set()
        self._opened = asyncio.Event()
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
        for watch in self._watches:
            watch.news.set()

    def check_room(self, jobs: int) -> None:
        """Raise FollowersFull if there is no room for a list of so many jobs."""
        if jobs + sum(len(each.open_list.shown) for each in self._watches) > MAX_JOBS:
            raise FollowersFull

    async def follow(self, open_list: OpenList, permit: Permit) -> AsyncGenerator[bytes, None]:
        """The frames that keep the list up to date.

        The stream ends when the server stops, `permit` lapses, or after `STREAM_SECONDS`.
        """
        until = self._loop.time() + STREAM_SECONDS
        yield FIRST
        silent_since = self._loop.time()
        with self._watching(open_list, permit) as watch:
            while not (self._closed or permit.lapsed) and self._loop.time() < until:
                changed, newest = watch.changes()
                if changed or newest:
                    frames = await self._rendered(open_list, changed, newest)
                    silent_since = self._loop.time()
                    yield frames
                elif self._loop.time() - silent_since > HEARTBEAT_SECONDS:
                    silent_since = self._loop.time()
                    yield HEARTBEAT
                await watch.wait(HEARTBEAT_SECONDS)

    async def _rendered(
        self, open_list: OpenList, changed: Collection[str], newest: str | None
    ) -> bytes:
        try:
            return await self._in_thread(partial(open_list.frames, changed, newest))
        except EigenpressError as error:  # the database is away; the next look tries again
            log.warning("A list is not brought up to date: %s", error)
            return HEARTBEAT

    @contextmanager
    def _watching(self, open_list: OpenList, permit: Permit) -> Iterator[_Watch]:
        watch = _Watch(open_list, permit.news)
        self._watches.add(watch)
        self._opened.set()
        try:
            yield watch
        finally:
            self._watches.remove(watch)
            if not self._watches:
                self._opened.clear()

    async def _run(self) -> None:
        failing = False
        while await self._opened.wait():
            watches = list(self._watches)
            asked = {each for watch in watches for each in watch.open_list.shown}
            tenants = {watch.open_list.tenant for watch in watches}
            try:
                standing = await self._in_thread(partial(self._look, asked, tenants))
            except Exception as error:
                if not failing:
                    defect = None if isinstance(error, EigenpressError) else error
                    log.warning("Open lists of jobs do not change: %s", error, exc_info=defect)
                failing = True
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            failing = False
            for watch in watches:
                watch.offer(asked, standing)
            await asyncio.sleep(LOOK_SECONDS)

    async def _in_thread(self, act: Callable[[], Result]) -> Result:
        return await to_thread.run_sync(act, limiter=self._readers)

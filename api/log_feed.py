"""Logs as they are printed: one reader of each log, however many people follow it.

While somebody follows a log, a task reads what was added to it and keeps the last `KEPT_BYTES` of
that. Each follower takes what lies beyond its own place, so nothing waits for a slow client: one
that falls too far behind misses lines, and sees by the offsets that it does.

    id: 5120                 the offset after the text; a browser sends it back as Last-Event-ID
    event: log
    data: {"start": 5000, "next_after": 5120, "text": "..."}

The last frame has the type `end`: nothing will be added to the log.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

from anyio import CapacityLimiter, to_thread
from fastapi.sse import format_sse_event

from api.event_stream import Permit, set_within
from api.feed import HEARTBEAT_SECONDS, PAUSE_SECONDS, STREAM_SECONDS
from api.frames import END, FIRST, HEARTBEAT
from service.errors import EigenpressError, FollowersFull, JobNotFound, LogNotFound
from service.log_lines import readable
from service.logs.attempt_logs import LogPage
from service.printable import printable, uncoloured

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
"""The least pause between two looks at a log."""
LOOK_SHARE = 0.2
"""Of a reader's time, at most: Ray sends a log from its beginning, so a long one takes long."""
PART_BYTES = 2**16
"""Read at a time. If more was printed meanwhile, its followers miss what came first."""
KEPT_BYTES = 2**17
"""Of each followed log, for followers that come later or are slow."""
MAX_LOGS = 200
"""That are followed at a time, on one process."""
READERS = 4
"""Threads that read logs for followers; other requests have their own."""


@dataclass(frozen=True)
class LogName:
    """Which log of which attempt."""

    job_id: str
    attempt: int
    source: str


ReadLog = Callable[[int | None], LogPage]
"""Reads at most `PART_BYTES` of a log beyond an offset, or its end if that is None."""


@dataclass(frozen=True)
class Part:
    """A part of a log, by the offsets of its first byte and of the first one after it."""

    start: int
    end: int
    text: str

    def beyond(self, place: int) -> Part:
        """What lies beyond the offset; the whole part if the text does not say where that is.

        It does not if bytes that are no UTF-8 were replaced.
        """
        data = self.text.encode()
        if place <= self.start or len(data) != self.end - self.start:
            return self
        return replace(self, start=place, text=data[place - self.start :].decode(errors="replace"))

    def frame(self) -> bytes:
        text = shown(self.text)
        data = {"start": self.start, "next_after": self.end, "text": text}
        return format_sse_event(data_str=json.dumps(data), event="log", id=str(self.end))


def shown(text: str) -> str:
    """What people see of a log's text: no JSON, no colours, and no character is invisible."""
    return printable(uncoloured(readable(text)))


class _Tail:
    """The end of a log, and those who follow it. Its methods are for the event loop's thread."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.followers: set[asyncio.Event] = set()
        self.complete = False
        self.after: int | None = None
        """Up to where the log was read; None if the next look is at its end."""
        self._parts: deque[Part] = deque()

    def take(self, page: LogPage) -> None:
        part = Part(page.start, page.next_after, page.text)
        if self._parts:
            part = part.beyond(self._parts[-1].end)
        if part.text:
            self._parts.append(part)
            while part.end - self._parts[0].end > KEPT_BYTES:
                self._parts.popleft()
        # A reader that is behind goes on at the end. A full page of whole lines has some room left.
        is_behind = self.after is not None and page.next_after - page.start > PART_BYTES // 2
        self.after = None if is_behind else page.next_after
        self.complete = page.complete
        if part.text or page.complete:
            self.wake()

    def finish(self) -> None:
        self.complete = True
        self.wake()

    def wake(self) -> None:
        for news in self.followers:
            news.set()

    def beyond(self, place: int) -> list[Part]:
        return [each.beyond(place) for each in self._parts if each.end > place]


class LogFeed:
    """The followed logs of one API process; an async context manager. It sleeps if there are none.

    Its methods are for the thread of the event loop, but for `close` and `check_room`.
    """

    def __init__(self) -> None:
        self._tails: dict[LogName, _Tail] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._readers = CapacityLimiter(READERS)
        self._loop = asyncio.get_running_loop()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def close(self) -> None:
        """End all streams soon; from any thread, or from a handler of a signal."""
        self._loop.call_soon_threadsafe(self._close)

    def _close(self) -> None:
        self._closed = True
        for tail in self._tails.values():
            tail.wake()

    def check_room(self, name: LogName) -> None:
        """Raise FollowersFull if no more logs may be followed, and nobody follows this one."""
        if name not in self._tails and len(self._tails) >= MAX_LOGS:
            raise FollowersFull

    async def follow(
        self, name: LogName, read: ReadLog, after: int, permit: Permit
    ) -> AsyncGenerator[bytes, None]:
        """The frames of the log beyond the offset `after`, or of its end if that begins later.

        The stream ends with a last frame when the log is complete or gone. It also ends, without
        that frame, when the server stops, `permit` lapses, or after `STREAM_SECONDS`.
        """
        until = self._loop.time() + STREAM_SECONDS
        yield FIRST
        place = after
        with self._joined(name, read, permit.news) as tail:
            while not (self._closed or permit.lapsed) and self._loop.time() < until:
                permit.news.clear()
                if new := tail.beyond(place):
                    place = new[-1].end
                    yield b"".join(each.frame() for each in new)
                elif tail.complete:
                    yield format_sse_event(data_str="", event=END)
                    return
                elif not await set_within(HEARTBEAT_SECONDS, permit.news):
                    yield HEARTBEAT

    @contextmanager
    def _joined(self, name: LogName, read: ReadLog, news: asyncio.Event) -> Iterator[_Tail]:
        tail = self._tails.get(name)
        if tail is None:
            tail = self._tails[name] = _Tail()
            tail.task = asyncio.create_task(self._run(tail, read))
            self._tasks.add(tail.task)
            tail.task.add_done_callback(self._tasks.discard)
        tail.followers.add(news)
        try:
            yield tail
        finally:
            tail.followers.remove(news)
            if not tail.followers:
                del self._tails[name]
                if tail.task is not None:
                    tail.task.cancel()

    async def _run(self, tail: _Tail, read: ReadLog) -> None:
        failing = False
        while not tail.complete:
            began = self._loop.time()
            pause = LOOK_SECONDS
            try:
                look = partial(read, tail.after)
                tail.take(await to_thread.run_sync(look, limiter=self._readers))
                failing = False
            except (JobNotFound, LogNotFound):  # it was deleted, or has no such log any more
                tail.finish()
            except Exception as error:
                if not failing:
                    defect = None if isinstance(error, EigenpressError) else error
                    log.warning("A followed log does not go on: %s", error, exc_info=defect)
                failing = True
                pause = PAUSE_SECONDS
            took = self._loop.time() - began
            await asyncio.sleep(max(pause, took / LOOK_SHARE - took))

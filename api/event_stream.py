"""Streams of events: when a client wants one, the answer that is one, and all those that are open.

A request's key is checked before its stream begins. While streams are open, a task looks from time
to time whether their keys are still valid, in one read of the database for all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Self

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request
from fastapi.sse import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from api.access import ADMIN_KEY_ID, NO_KEY_ID
from service.domain.principal import Principal
from service.errors import EigenpressError, FollowersFull, TooManyFollowers

log = logging.getLogger(__name__)

MEDIA_TYPE = EventSourceResponse.media_type
SEND_SECONDS = 60.0
"""A client that takes nothing for so long is dropped; it can follow again."""
KEY_CHECK_SECONDS = 15.0
"""The pause between two looks at the keys of open streams."""
MAX_FOLLOWERS = 2000
MAX_FOLLOWERS_PER_TENANT = 1000


@dataclass(eq=False)
class Permit:
    """Lets one stream go on, until its key is revoked or expires."""

    principal: Principal
    lapsed: bool = False
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the stream has something to do, which may be to end."""

    def lapse(self) -> None:
        self.lapsed = True
        self.news.set()


async def set_within(seconds: float, news: asyncio.Event) -> bool:
    """Whether it is set within this time."""
    try:
        await asyncio.wait_for(news.wait(), seconds)
    except TimeoutError:
        return False
    return True


class OpenStreams:
    """The open streams of one API process; an async context manager.

    Its methods are for the thread of the event loop, but for `check_room`.
    """

    def __init__(self, valid_keys: Callable[[Collection[str]], set[str]]) -> None:
        self._valid_keys = valid_keys
        self._permits: set[Permit] = set()
        self._of_tenants: Counter[str] = Counter()
        self._readers = CapacityLimiter(1)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def check_room(self, tenant: str) -> None:
        """Raise TooManyFollowers or FollowersFull if there is no room for another stream."""
        if self._of_tenants[tenant] >= MAX_FOLLOWERS_PER_TENANT:
            raise TooManyFollowers(
                f"Your tenant follows {MAX_FOLLOWERS_PER_TENANT} streams of events already, which "
                "is as many as it may: close some of them."
            )
        if self.count() >= MAX_FOLLOWERS:
            raise FollowersFull

    def count(self) -> int:
        """How many streams are open."""
        return len(self._permits)

    @contextmanager
    def opened(self, permit: Permit) -> Iterator[None]:
        """Count a stream, and check its key, while it is open."""
        tenant = permit.principal.tenant
        self._permits.add(permit)
        self._of_tenants[tenant] += 1
        try:
            yield
        finally:
            self._permits.remove(permit)
            self._of_tenants[tenant] -= 1
            if not self._of_tenants[tenant]:
                del self._of_tenants[tenant]

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(KEY_CHECK_SECONDS)
            try:
                await self._check_keys()
            except Exception as error:
                defect = None if isinstance(error, EigenpressError) else error
                log.warning("The keys of open streams go unchecked: %s", error, exc_info=defect)

    async def _check_keys(self) -> None:
        asked = {each.principal.key_id for each in self._permits} - {ADMIN_KEY_ID, NO_KEY_ID}
        if not asked:
            return
        look = partial(self._valid_keys, asked)
        invalid = asked - await to_thread.run_sync(look, limiter=self._readers)
        for permit in self._permits:
            if permit.principal.key_id in invalid:
                permit.lapse()


async def _streams(request: Request) -> OpenStreams:
    streams: OpenStreams = request.state.streams
    return streams


OpenStreamsDep = Annotated[OpenStreams, Depends(_streams)]


class EventStream(EventSourceResponse):
    """A stream of frames, which counts as open until it ends."""

    def __init__(
        self, frames: AsyncGenerator[bytes, None], streams: OpenStreams, permit: Permit
    ) -> None:
        # Some proxies collect an answer before they pass it on, unless told otherwise.
        super().__init__(frames, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._frames = frames
        self._streams = streams
        self._permit = permit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._streams.opened(self._permit):
            async with aclosing(self._frames):
                try:
                    await super().__call__(scope, receive, send)
                except TimeoutError:
                    log.info("A follower took nothing for %.0f seconds", SEND_SECONDS)

    async def stream_response(self, send: Send) -> None:
        async def bounded(message: Message) -> None:
            async with asyncio.timeout(SEND_SECONDS):
                await send(message)

        await super().stream_response(bounded)


def wants_stream(accept: str) -> bool:
    """Whether an `Accept` header names the media type of streams.

    >>> wants_stream("text/event-stream"), wants_stream("application/json, */*")
    (True, False)
    """
    for each in accept.split(","):
        media_type, *parameters = (part.strip().lower() for part in each.split(";"))
        if media_type == MEDIA_TYPE:
            return not any(parameter in ("q=0", "q=0.0") for parameter in parameters)
    return False

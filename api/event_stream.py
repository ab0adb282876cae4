"""The answer that is a stream of events, and when a client wants one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi.sse import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from api.feed import Feed

log = logging.getLogger(__name__)

MEDIA_TYPE = EventSourceResponse.media_type
SEND_SECONDS = 60.0
"""A client that takes nothing for so long is dropped; it can follow again."""


class EventStream(EventSourceResponse):
    """A tenant's stream of frames, which counts as open until it ends."""

    def __init__(self, frames: AsyncGenerator[bytes, None], feed: Feed, tenant: str) -> None:
        # Some proxies collect an answer before they pass it on, unless told otherwise.
        super().__init__(frames, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self._frames = frames
        self._feed = feed
        self._tenant = tenant

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._feed.counted(self._tenant):
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

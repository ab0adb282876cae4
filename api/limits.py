"""The bounds on the size of request bodies, and on the time that they take to arrive."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import HTTP_CODES, ProblemResponse

MAX_BODY_BYTES = 64 * 1024
"""A job's specification takes a few kilobytes; models and texts are named, never sent. A body of
this size is parsed, and 200 such jobs are listed, before other requests notice."""
MAX_BODY_SECONDS = 20.0

_CLOSE = {"Connection": "close"}
"""The rest of the body is not read, so no further request can follow it."""


class BodyLimit:
    """Answer 413 to a body whose declared or actual size exceeds the bound, and 408 to a slow one.

    FastAPI's own `max_body_size` does the first, but with a plain-text response.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif _declared_bytes(scope) > MAX_BODY_BYTES:
            refusal = ProblemResponse(
                413, HTTP_CODES[413], _too_large(), instance=scope["path"], headers=_CLOSE
            )
            await refusal(scope, receive, send)
        else:
            await self._app(scope, _bounded(receive), send)


def _bounded(receive: Receive) -> Receive:
    received = 0
    deadline: float | None = asyncio.get_running_loop().time() + MAX_BODY_SECONDS

    async def bounded() -> Message:
        nonlocal received, deadline
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            detail = f"The body took longer than {MAX_BODY_SECONDS:g} seconds to arrive"
            raise HTTPException(408, detail, headers=_CLOSE) from None
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise HTTPException(413, _too_large(), headers=_CLOSE)
        if not message.get("more_body"):
            deadline = None  # what follows is the end of the connection, whenever it comes
        return message

    return bounded


def _too_large() -> str:
    return f"The body is larger than {MAX_BODY_BYTES} bytes"


def _declared_bytes(scope: Scope) -> int:
    try:
        return int(Headers(scope=scope).get("content-length", "0"))
    except ValueError:  # not a number: the bytes that arrive are counted anyway
        return 0

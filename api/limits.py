"""The bound on the size of request bodies."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import HTTP_CODES, ProblemResponse

MAX_BODY_BYTES = 1024 * 1024
"""A job's specification takes a few kilobytes; models and texts are named, never sent."""

_DETAIL = f"The body is larger than {MAX_BODY_BYTES} bytes"


class BodyLimit:
    """Answer 413 to a body whose declared or actual size exceeds the bound.

    FastAPI's own `max_body_size` does the same, but with a plain-text response.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif _declared_bytes(scope) > MAX_BODY_BYTES:
            refusal = ProblemResponse(413, HTTP_CODES[413], _DETAIL, instance=scope["path"])
            await refusal(scope, receive, send)
        else:
            await self._app(scope, _counted(receive), send)


def _counted(receive: Receive) -> Receive:
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY_BYTES:
            raise HTTPException(413, _DETAIL)
        return message

    return counted


def _declared_bytes(scope: Scope) -> int:
    try:
        return int(Headers(scope=scope).get("content-length", "0"))
    except ValueError:  # not a number: the bytes that arrive are counted anyway
        return 0

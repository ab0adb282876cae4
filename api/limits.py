"""The bounds on the size of request bodies, and on the time that they take to arrive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import suppress

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import HTTP_CODES, ProblemResponse

MAX_BODY_BYTES = 64 * 1024
"""A job's specification takes a few kilobytes; models and texts are named, never sent. A body of
this size is parsed, and 200 such jobs are listed, before other requests notice."""
MAX_BODY_SECONDS = 20.0

PIECE_BYTES = 256 * 1024
"""Of a file that is uploaded: what is checked at a time."""
DRAIN_SECONDS = 30.0
"""How long the rest of a refused upload is read after the answer. Many clients read no answer
before they have sent everything, and none once the connection is closed on them."""

_CLOSE = {"Connection": "close"}
"""The rest of the body is not read, so no further request can follow it."""


class BodyLimit:
    """Answer 413 to a body whose declared or actual size exceeds the bound, and 408 to a slow one.

    FastAPI's own `max_body_size` does the first, but with a plain-text response. The routes in
    `streamed`, each a method and a path, bound the bodies that they read by `pieces`.
    """

    def __init__(self, app: ASGIApp, streamed: Collection[tuple[str, str]] = ()) -> None:
        self._app = app
        self._streamed = frozenset(streamed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif (scope["method"], _path(scope)) in self._streamed:
            body = _Streamed(receive, send)
            await self._app(scope, body.receive, body.send)
        elif declared_bytes(scope) > MAX_BODY_BYTES:
            refusal = ProblemResponse(
                413, HTTP_CODES[413], _too_large(), instance=scope["path"], headers=_CLOSE
            )
            await refusal(scope, receive, send)
        else:
            await self._app(scope, _bounded(receive), send)


async def pieces(request: Request, seconds: float) -> AsyncIterator[bytes]:
    """The body in pieces of about `PIECE_BYTES`, each of which must arrive within `seconds`.

    Raises 408 for one that does not, and if the client goes away.
    """
    chunks = request.stream()
    more = True
    while more:
        piece = bytearray()
        try:
            async with asyncio.timeout(seconds):
                while more and len(piece) < PIECE_BYTES:
                    chunk = await anext(chunks, None)
                    more = chunk is not None
                    piece += chunk or b""
        except TimeoutError:
            detail = (
                f"The next {PIECE_BYTES} bytes took longer than {seconds:g} seconds to arrive; "
                "nothing was kept"
            )
            raise HTTPException(408, detail) from None
        except ClientDisconnect:
            raise HTTPException(408, "The client went away; nothing was kept") from None
        if piece:
            yield bytes(piece)


def declared_bytes(scope: Scope) -> int:
    """What `Content-Length` says; 0 if it says nothing."""
    try:
        return int(Headers(scope=scope).get("content-length", "0"))
    except ValueError:  # not a number: the bytes that arrive are counted anyway
        return 0


def _path(scope: Scope) -> str:
    """The path of the route, without that of a proxy's mount."""
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


class _Streamed:
    """A request whose answer may come before its body has: then the rest is read and dropped."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._ended = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._ended = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self._ended:
            close = (b"connection", b"close")
            message = {**message, "headers": [*message.get("headers", ()), close]}
        is_last = message["type"] == "http.response.body" and not message.get("more_body")
        if is_last and not self._ended:
            await self._send({**message, "more_body": True})
            await self._drain()
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    async def _drain(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self._ended:
                    await self.receive()


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

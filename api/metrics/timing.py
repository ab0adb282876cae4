"""Measures how long requests wait for their answers."""

from __future__ import annotations

import time
from typing import Protocol

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.middleware import before_answer

UNROUTED = "none"
"""The route of a request that none takes, or that is refused before."""
METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
OTHER = "other"


class Note(Protocol):
    def __call__(self, method: str, route: str, status: int, seconds: float) -> None:
        """As `api.metrics.metrics.Metrics.answered`."""


class Timed:
    """Notes the time to the first byte of each answer, with the pattern of its route.

    A stream would otherwise count as a slow answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()

        def take_note(message: Message) -> None:
            note: Note | None = scope.get("state", {}).get("answered")
            if note is not None:
                method = scope["method"] if scope["method"] in METHODS else OTHER
                seconds = time.perf_counter() - start
                note(method, _pattern(scope), message["status"], seconds)

        await self._app(scope, receive, before_answer(send, take_note))


def _pattern(scope: Scope) -> str:
    """The path of the route, with the names of its parameters: paths themselves hold ids."""
    pattern: str = getattr(scope.get("route"), "path", UNROUTED)
    return pattern

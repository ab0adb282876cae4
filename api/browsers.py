"""Keeps web pages of other sites from using the API through a visitor's browser.

A page may send requests to loopback, and a name that it resolves to 127.0.0.1 makes its own
requests look local (DNS rebinding). Browsers name the page in `Origin` and the name in `Host`.
"""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.errors import ProblemResponse

READING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing; a page of another origin cannot read their answers."""


class SameSite:
    """Answer 403 to a host that is not allowed, and to a change that another site's page makes.

    `hosts` are the names, without ports, under which the API is reached; any if there are none.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str]) -> None:
        self._app = app
        self._hosts = frozenset(map(str.lower, hosts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = self._problem(scope) if scope["type"] == "http" else None
        if problem is None:
            await self._app(scope, receive, send)
        else:
            refusal = ProblemResponse(403, *problem, instance=scope["path"])
            await refusal(scope, receive, send)

    def _problem(self, scope: Scope) -> tuple[str, str] | None:
        """The code and the detail of a refusal; None if the request is allowed."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self._hosts and _name(host) not in self._hosts:
            return "host_forbidden", (
                "This server is not reached under the name in the Host header. Its operator can "
                "add the name to EIGENPRESS_ALLOWED_HOSTS."
            )
        if origin is None or scope["method"] in READING:
            return None
        if _place(origin) in (host, headers.get("x-forwarded-host", host)):
            return None
        return "origin_forbidden", "A web page of another site may not change anything here."


def _place(origin: str) -> str | None:
    """The host and port in an Origin header; None if it is no origin."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _name(host: str) -> str | None:
    """The name in a Host header, without its port; None if it is no host."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None

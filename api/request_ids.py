"""Names each request, in its answer and in all lines that are logged while it is answered."""

from __future__ import annotations

import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.middleware import before_answer
from service.log_lines import bind, log_fields

REQUEST_ID_HEADER = "X-Request-ID"
_WELL_FORMED = re.compile(r"[A-Za-z0-9._:=+/@-]{1,128}")


class Named:
    """Takes the name that the client, or a proxy, has given the request, or else makes one.

    The answer of a defect gets it from `api.errors`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).getlist(REQUEST_ID_HEADER)
        request_id = given[0] if len(given) == 1 else ""
        if not _WELL_FORMED.fullmatch(request_id):
            request_id = uuid4().hex
        # Each request has a task of its own. The server logs in it, too, after this returns.
        bind(request_id=request_id)

        def name(message: Message) -> None:
            MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id

        await self._app(scope, receive, before_answer(send, name))


def request_id_header() -> dict[str, str]:
    """The header for an answer that passes no middleware."""
    request_id = log_fields().get("request_id")
    return {} if request_id is None else {REQUEST_ID_HEADER: request_id}

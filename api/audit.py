"""Writes the audit log: every change that a request with a key has made."""

from __future__ import annotations

import logging

from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.browsers import READING
from service.domain.principal import Principal
from service.errors import EigenpressError
from service.store.audit import Audit

logger = logging.getLogger(__name__)

CHANGES_NOTHING = frozenset({"estimate", "redraw"})
"""Operations that only read, although their method is POST."""


class AuditLog:
    """Record each change before its answer leaves.

    The change has been made by then, so an audit log that cannot be written fails no request; the
    server's own log then has the record.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in READING:
            await self._app(scope, receive, send)
            return

        async def recorded(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] < 400:
                await _record(scope, Headers(raw=message["headers"]))
            await send(message)

        await self._app(scope, receive, recorded)


async def _record(scope: Scope, headers: Headers) -> None:
    principal: Principal | None = scope["state"].get("principal")
    action = getattr(scope.get("route"), "name", None)
    if principal is None or action is None or action in CHANGES_NOTHING:
        return
    audit: Audit = scope["state"]["services"].store.audit
    address = scope["client"][0] if scope.get("client") else None
    subject = scope["state"].get("subject") or headers.get("location", scope["path"])
    record = principal, action, subject, address
    try:
        await run_in_threadpool(audit.record, *record)
    except EigenpressError as error:
        logger.error("The audit log lacks %r: %s", record, error)

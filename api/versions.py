"""Tells the server's version with every answer."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.middleware import before_answer
from service.client.versions import VERSION, VERSION_HEADER


class Versioned:
    """Adds the header to every answer but that of a defect, which adds it itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        def tell(message: Message) -> None:
            MutableHeaders(scope=message)[VERSION_HEADER] = VERSION

        await self._app(scope, receive, before_answer(send, tell))

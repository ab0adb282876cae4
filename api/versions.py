"""Tells the server's version with every answer."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.client.versions import VERSION, VERSION_HEADER


class Versioned:
    """Adds the header to every answer but that of a defect, which adds it itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def versioned(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[VERSION_HEADER] = VERSION
            await send(message)

        await self._app(scope, receive, versioned)

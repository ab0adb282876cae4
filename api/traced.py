"""A span for each request, if the process is tracing."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.middleware import before_answer
from service.tracing import span


class Traced:
    """Continues the trace that the client, or a proxy, names in `traceparent`.

    The span ends with the answer's last byte. Its attributes are those of OpenTelemetry's
    conventions for HTTP, without the path, which may hold a code or a name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        about = {"http.request.method": method}
        with span(method, Headers(scope=scope), about, server=True) as current:

            def describe(message: Message) -> None:
                if current is None:
                    return
                current.set_attribute("http.response.status_code", message["status"])
                if (route := getattr(scope.get("route"), "path", None)) is not None:
                    current.set_attribute("http.route", route)
                    current.update_name(f"{method} {route}")

            await self._app(scope, receive, before_answer(send, describe))

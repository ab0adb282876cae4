"""One attempt to deliver a message: a POST that follows no redirect and waits for no body.

The whole attempt ends within `ATTEMPT_SECONDS`, however slowly a name server or a receiver
answers. Of the answer only the status counts; its body is not read.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Sequence
from importlib.metadata import version
from urllib.parse import urlsplit

import httpcore
import httpx

from service.domain.webhook import Message, Outcome
from service.egress.connections import AddressForbidden, GuardedBackend, Resolve
from service.egress.urls import UrlRules
from service.webhooks.signature import signed_headers

ATTEMPT_SECONDS = 15.0

USER_AGENT = f"eigenpress/{version('eigenpress')}"


class Sender:
    """Sends messages, each over a connection of its own."""

    def __init__(
        self, rules: UrlRules, resolve: Resolve, trusted: ssl.SSLContext | None = None
    ) -> None:
        """`trusted`: other certificate authorities than `SSL_CERT_FILE` or certifi names."""
        self._rules = rules
        self._backend = GuardedBackend(rules.networks, resolve)
        self._trusted = trusted or httpx.create_ssl_context()

    async def send(self, message: Message, secrets: Sequence[str]) -> Outcome:
        """Try once. Never raises, except when it is cancelled."""
        if objection := self._rules.objection(message.url):
            return Outcome(error=objection)
        try:
            async with asyncio.timeout(ATTEMPT_SECONDS):
                status = await self._post(message, secrets)
        except TimeoutError:
            return Outcome(error=f"The receiver took longer than {ATTEMPT_SECONDS:g} seconds.")
        except AddressForbidden as error:
            return Outcome(error=str(error))
        except (*_FAILURES, OSError) as error:
            return Outcome(error=_words(error))
        if 200 <= status < 300:
            return Outcome(status)
        return Outcome(status, f"The receiver answered with status {status}.")

    async def _post(self, message: Message, secrets: Sequence[str]) -> int:
        headers = {
            "Host": urlsplit(message.url).netloc,  # httpcore leaves out the brackets of IPv6
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            **signed_headers(secrets, message.id, int(time.time()), message.body),
        }
        async with (
            httpcore.AsyncConnectionPool(
                ssl_context=self._trusted,
                max_keepalive_connections=0,
                network_backend=self._backend,
            ) as connections,
            connections.stream(
                "POST", message.url, headers=[*headers.items()], content=message.body.encode()
            ) as answer,
        ):
            return answer.status


_FAILURES = (
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
    ssl.SSLError,
)


def _words(error: Exception) -> str:
    what = "does not speak HTTP" if isinstance(error, httpcore.ProtocolError) else "does not answer"
    reason = str(error) or type(error).__name__
    return f"The receiver {what}: {reason}"

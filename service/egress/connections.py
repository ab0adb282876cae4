"""Connects to hosts that users choose, and only to allowed addresses.

A name is resolved once for each connection. If any of its addresses is not allowed, there is no
connection; otherwise it goes to one of these very addresses, and no one resolves the name again.
So a name whose answers change (DNS rebinding) gains nothing. TLS still checks the certificate
against the name, which the URL gives to the layer above this one.

The environment's proxies are not used: a proxy would resolve the name itself.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

import httpcore

from service.egress.addresses import AllowedNetworks, parsed

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Returns the addresses of a host."""

MAX_ADDRESSES = 4
"""How many addresses of a host are tried."""
CONNECT_SECONDS = 5.0
"""For one address; the time of the whole request limits all together."""


class AddressForbidden(Exception):
    """The host has no address, or one that is not allowed.

    The message does not say which: it would tell strangers about the server's own network.
    """

    def __init__(self, host: str) -> None:
        super().__init__(f"{host} has no public address.")


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections to allowed addresses, for a pool of httpcore."""

    def __init__(
        self,
        networks: AllowedNetworks,
        resolve: Resolve,
        connections: httpcore.AsyncNetworkBackend | None = None,
    ) -> None:
        """`connections` opens those that are allowed."""
        self._networks = networks
        self._resolve = resolve
        self._connections = connections or httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Raises AddressForbidden, and the error of the last address that was tried."""
        seconds = CONNECT_SECONDS if timeout is None else min(timeout, CONNECT_SECONDS)
        failure: Exception = AddressForbidden(host)
        for address in await self._allowed(host, port):
            try:
                return await self._connections.connect_tcp(
                    address, port, seconds, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _allowed(self, host: str, port: int) -> Sequence[str]:
        try:
            found = await self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise AddressForbidden(host) from error
        for text in found:
            address = parsed(text)
            if address is None or address not in self._networks:
                raise AddressForbidden(host)
        return found[:MAX_ADDRESSES]


def resolver(executor: Executor) -> Resolve:
    """The system's resolver, in threads of `executor`: a name server may take long to answer."""

    async def resolve(host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(executor, _addresses, host, port)
        return list(dict.fromkeys(found))

    return resolve


def _addresses(host: str, port: int) -> list[str]:
    return [str(each[4][0]) for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]

"""Connections go to addresses that were checked, and to no others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpcore
import pytest

from service.egress.addresses import AllowedNetworks
from service.egress.connections import MAX_ADDRESSES, AddressForbidden, GuardedBackend, resolver
from tests.unit.service.egress.test_addresses import FORBIDDEN


class Names:
    """A name server that gives one answer after the other, and the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.questions = 0

    async def __call__(self, _host: str, _port: int) -> Sequence[str]:
        self.questions += 1
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


class Connections(httpcore.AsyncNetworkBackend):
    """Notes where connections go; those to `dead` addresses fail."""

    def __init__(self, dead: Sequence[str] = ()) -> None:
        self._dead = dead
        self.made: list[tuple[str, int]] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        self.made.append((host, port))
        if host in self._dead:
            raise httpcore.ConnectError("refused")
        return httpcore.AsyncNetworkStream()


def connect(names: Names, connections: Connections, host: str = "hooks.example.com") -> None:
    backend = GuardedBackend(AllowedNetworks(), names, connections)
    asyncio.run(backend.connect_tcp(host, 443))


def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    names, connections = Names(["93.184.215.14"]), Connections()
    connect(names, connections)
    assert connections.made == [("93.184.215.14", 443)]
    assert names.questions == 1


@pytest.mark.parametrize("address", FORBIDDEN)
def test_a_name_of_a_forbidden_address_gets_no_connection(address: str) -> None:
    connections = Connections()
    with pytest.raises(AddressForbidden, match=r"hooks\.example\.com has no public address"):
        connect(Names([address]), connections)
    assert connections.made == []


@pytest.mark.parametrize("answer", [["8.8.8.8", "10.0.0.1"], ["::1", "8.8.8.8"], [], ["what"]])
def test_one_forbidden_address_is_enough(answer: list[str]) -> None:
    connections = Connections()
    with pytest.raises(AddressForbidden):
        connect(Names(answer), connections)
    assert connections.made == []


def test_a_name_that_changes_its_answer_gains_nothing() -> None:
    names, connections = Names(["93.184.215.14"], ["127.0.0.1"]), Connections()
    connect(names, connections)
    with pytest.raises(AddressForbidden):
        connect(names, connections)
    assert connections.made == [("93.184.215.14", 443)]


def test_another_address_is_tried_and_not_many() -> None:
    answer = [f"8.8.8.{number}" for number in range(20)]
    connections = Connections(dead=answer[:1])
    connect(Names(answer), connections)
    assert [host for host, _ in connections.made] == answer[:2]
    connections = Connections(dead=answer)
    with pytest.raises(httpcore.ConnectError):
        connect(Names(answer), connections)
    assert len(connections.made) == MAX_ADDRESSES


@pytest.mark.parametrize("host", ["localhost", "127.1", "0x7f000001", "2130706433", "::1"])
def test_the_systems_resolver_understands_more_than_we_do(host: str) -> None:
    """Such a host never gets into a URL; if one did, the address would be checked all the same."""
    connections = Connections()
    with ThreadPoolExecutor(1) as threads:
        backend = GuardedBackend(AllowedNetworks(), resolver(threads), connections)
        with pytest.raises(AddressForbidden):
            asyncio.run(backend.connect_tcp(host, 80))
    assert connections.made == []


def test_an_unknown_name_sounds_like_a_private_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with ThreadPoolExecutor(1) as threads:
        backend = GuardedBackend(AllowedNetworks(), resolver(threads), Connections())
        with pytest.raises(AddressForbidden, match="has no public address"):
            asyncio.run(backend.connect_tcp("nowhere.example", 443))

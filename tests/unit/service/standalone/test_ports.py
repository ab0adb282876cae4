"""`service.standalone.ports` against real sockets."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from service.errors import InvalidParameter
from service.standalone import ports
from service.standalone.ports import LOOPBACK, choose_port

EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_zero_is_some_free_port() -> None:
    port = choose_port(0, "--port")
    with socket.create_server((LOOPBACK, port)):
        pass


@pytest.mark.skipif(not EPHEMERAL.exists(), reason="only Linux says its range")
def test_no_outgoing_connection_takes_a_free_port() -> None:
    lowest = int(EPHEMERAL.read_text().split()[0])
    assert all(choose_port(0, "--port") < lowest for _ in range(20))


def test_no_free_port_is_chosen_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "_FREE", range(20_000, 20_003))
    monkeypatch.setattr(ports, "_chosen", set())
    monkeypatch.setattr(ports, "_problem", lambda _: None)
    told = choose_port(20_001, "--dashboard-port")
    assert {told, choose_port(0, "--port"), choose_port(0, "--port")} == set(ports._FREE)
    with pytest.raises(InvalidParameter, match=r"No port from 20000 to 20002 is free.* --port"):
        choose_port(0, "--port")


def test_a_port_in_use_is_refused_with_the_way_out() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InvalidParameter, match=f"Port {port} cannot .* --port"):
            choose_port(port, "--port")
    assert choose_port(port, "--port") == port

"""`service.ports` against real sockets."""

from __future__ import annotations

import socket

import pytest

from service.errors import InvalidParameter
from service.ports import LOOPBACK, choose_port


def test_zero_is_some_free_port() -> None:
    port = choose_port(0, "--port")
    with socket.create_server((LOOPBACK, port)):
        pass


def test_a_port_in_use_is_refused_with_the_way_out() -> None:
    with socket.create_server((LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(InvalidParameter, match=f"Port {port} cannot .* --port"):
            choose_port(port, "--port")
    assert choose_port(port, "--port") == port

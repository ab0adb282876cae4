"""TCP ports of this machine's loopback interface."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

from service.errors import InfrastructureError, InvalidParameter

LOOPBACK = "127.0.0.1"

CONNECT_SECONDS = 5.0

_FREE = range(20_000, 32_000)
"""The range from which free ports are chosen.

It lies below the ports of outgoing connections: one of those could take a port in the seconds
before its server listens there.
"""

_chosen: set[int] = set()
"""Ports that this process has chosen. Their servers may not listen yet, so they are not reused."""


def choose_port(wanted: int, option: str) -> int:
    """`wanted` if nothing listens there, or some free port if it is 0.

    Raises `InvalidParameter`, which names the command line's `option`.
    """
    if wanted and (problem := _problem(wanted)):
        raise InvalidParameter(
            f"Port {wanted} cannot be used ({problem}). "
            f"Choose another with {option}; 0 chooses any free port."
        )
    port = wanted or _free_port(option)
    _chosen.add(port)
    return port


def answers(port: int, ours: Callable[[], Iterable[psutil.Process]]) -> bool:
    """Whether one of our processes listens on the port; False if nobody does.

    To be asked before a secret goes there: any user of the machine may have taken the port since it
    was chosen. Raises `InfrastructureError` then.
    """
    try:
        socket.create_connection((LOOPBACK, port), timeout=CONNECT_SECONDS).close()
    except OSError:
        return False
    if any(_listens(process, port) for process in ours()):
        return True
    raise InfrastructureError(
        f"Another process answers at port {port}. Stop it, or choose another port."
    )


def _listens(process: psutil.Process, port: int) -> bool:
    with suppress(psutil.Error):
        for each in process.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr.port == port:
                return True
    return False


def _free_port(option: str) -> int:
    for port in random.sample(_FREE, len(_FREE)):  # at random, because other processes choose, too
        if port not in _chosen and not _problem(port):
            return port
    raise InvalidParameter(
        f"No port from {_FREE[0]} to {_FREE[-1]} is free. Choose one with {option}."
    )


def _problem(port: int) -> str | None:
    """Why no server can listen on the port; None if one can."""
    with socket.socket() as probe:
        # As servers do, so that a port on which one has just stopped counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            return error.strerror
    return None

"""TCP ports of this machine's loopback interface."""

from __future__ import annotations

import random
import socket

from service.errors import InvalidParameter

LOOPBACK = "127.0.0.1"

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

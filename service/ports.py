"""TCP ports of this machine's loopback interface."""

from __future__ import annotations

import socket

from service.errors import InvalidParameter

LOOPBACK = "127.0.0.1"


def choose_port(wanted: int, option: str) -> int:
    """`wanted` if nothing listens there, or some free port if it is 0.

    Raises `InvalidParameter`, which names the command line's `option`.
    """
    with socket.socket() as probe:
        # As servers do, so that a port on which one has just stopped counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError as error:
            raise InvalidParameter(
                f"Port {wanted} cannot be used ({error.strerror}). "
                f"Choose another with {option}; 0 is any free one."
            ) from error
        port: int = probe.getsockname()[1]
        return port

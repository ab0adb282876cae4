"""The key that `eigenpress serve` leaves in its data folder, for the clients of its owner.

    admin-key   the key, with mode 0600; it stays
    address     the URL of the server, which locks the file while it runs

A key goes to the address alone at which its server runs: any user of the machine may listen at
another port, or at this one when the server has ended. The lock ends with its process, however that
ends; the file may stay.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ADMIN_KEY_FILE = "admin-key"
ADDRESS_FILE = "address"


def key_of_server(url: str, data_dir: Path) -> str | None:
    """The key of the server of this data folder, if it runs at this URL."""
    if running_server(data_dir) != url.rstrip("/"):
        return None
    return _line(data_dir / ADMIN_KEY_FILE)


def running_server(data_dir: Path) -> str | None:
    """The URL of the server of this data folder; None if none runs, or it is another user's."""
    with suppress(OSError), (data_dir / ADDRESS_FILE).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _line(data_dir / ADDRESS_FILE)
    return None


@contextmanager
def held(address: Path) -> Iterator[None]:
    """Lock the file with the address of a server as long as the block runs."""
    with address.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _line(path: Path) -> str | None:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text().strip() or None
    return None

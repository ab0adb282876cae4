"""Reports a full disk: the folder, the machine, and what to do about it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import DiskFull

CAUSES = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def naming_full_disk(folder: Path) -> Iterator[None]:
    """Raise `DiskFull` in place of errors that a full disk causes in writes to `folder`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DiskFull) or not is_full_disk(error):
            raise
        raise DiskFull(
            f"The disk under {folder} on {socket.gethostname()} is full: make room there, or set "
            f"EIGENPRESS_DATA_DIR to a larger disk ({error})."
        ) from error


def is_full_disk(error: BaseException) -> bool:
    """Whether a full disk caused the error; libraries in Rust keep only the system's message."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in CAUSES
    return any(os.strerror(cause) in str(error) for cause in CAUSES)

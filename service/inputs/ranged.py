"""Reads files elsewhere by their parts, so that only the headers of large ones are transferred."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import IO, cast

BUFFER_BYTES = 2**18
"""One request brings the whole header of most files."""


def open_ranged(size: int, read: Callable[[int, int], bytes]) -> IO[bytes]:
    """A file of `size` bytes; `read` takes the position and the number of the bytes to read."""
    return cast(IO[bytes], io.BufferedReader(_RangedFile(size, read), BUFFER_BYTES))


class _RangedFile(io.RawIOBase):
    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        super().__init__()
        self._size = size
        self._read = read
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), self._size - self._at)
        if wanted <= 0:
            return 0
        data = self._read(self._at, wanted)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

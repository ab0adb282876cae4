"""Opens local files such that what is read is what was allowed.

Users of a machine may replace a file, or a folder above it, by a symbolic link at any time, also
after its path has been resolved and allowed. So a resolved path is opened without following any
link, and libraries that read by path are given links to the open files.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from service.disk_full import naming_full_disk
from service.errors import EigenpressError

_FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW
_PASSED = _FOLDER | getattr(os, "O_PATH", os.O_RDONLY)
"""For folders on the way. macOS has no O_PATH; the folder must be readable there."""
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
"""O_NONBLOCK because a pipe without a writer would otherwise be waited for."""

Open = Callable[[Path, Path], IO[bytes]]
"""Opens a file, given the path that names it and the same path resolved."""


def open_file(resolved: Path) -> IO[bytes]:
    """The regular file at a resolved path. Raises OSError, also if a link is on the path by now."""
    return os.fdopen(_open_file(resolved), "rb")


@contextmanager
def open_path(resolved: Path) -> Iterator[Path]:
    """A path of the regular file at a resolved path, kept open. Raises OSError as `open_file`."""
    descriptor = _open_file(resolved)
    try:
        yield _path_of(descriptor, resolved)
    finally:
        os.close(descriptor)


@contextmanager
def scan_folder(resolved: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
    """What is in the folder at a resolved path. Raises OSError as `open_file` does."""
    descriptor = _open(resolved, os.O_RDONLY | _FOLDER)
    try:
        with os.scandir(descriptor) as entries:
            yield entries
    finally:
        os.close(descriptor)


class HeldFiles:
    """Files that stay open, and a private folder in which links to them stand at their paths.

    Whoever reads below the folder reads what was opened, whatever has become of the names since.
    Threads may share it.
    """

    def __init__(self, parent: Path) -> None:
        """The folder is made in `parent` with the first file. It is removed with `parent`."""
        self._parent = parent
        self._root: Path | None = None
        self._held: dict[Path, int] = {}
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, _close, self._held)

    @property
    def root(self) -> Path:
        if self._root is None:
            self._parent.mkdir(parents=True, exist_ok=True)
            self._root = Path(tempfile.mkdtemp(prefix="inputs-", dir=self._parent))
        return self._root

    def view(self, path: Path) -> Path:
        """The place below the folder that stands for an absolute path."""
        return self.root / path.relative_to(path.anchor)

    def open(self, path: Path, resolved: Path) -> IO[bytes]:
        """Open a file as `open_file` does, and keep it. It is opened once for every path."""
        with self._lock:
            link = self.view(path)
            if path not in self._held:
                descriptor = self._held[path] = _open_file(resolved)
                with naming_full_disk(self.root):
                    link.parent.mkdir(parents=True, exist_ok=True)
                    link.symlink_to(_path_of(descriptor, resolved))
            return link.open("rb")

    @contextmanager
    def naming_paths(self) -> Iterator[None]:
        """Have errors name the paths of the files, not those of the links."""
        try:
            yield
        except EigenpressError as error:
            if self._root is not None:
                error.detail = error.detail.replace(str(self._root), "")
            raise


def _open_file(resolved: Path) -> int:
    descriptor = _open(resolved, _FILE)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "It is not a regular file", str(resolved))
    return descriptor


def _path_of(descriptor: int, resolved: Path) -> Path:
    """A path by which libraries and other processes read an open file.

    macOS has none: there they open the file again, and a link may have taken its place.
    """
    path = Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    return path if path.exists() else resolved


def _open(resolved: Path, flags: int) -> int:
    """A descriptor of what is at an absolute path, if no part of the path is a link."""
    folder = os.open(resolved.anchor, _PASSED)
    try:
        for name in resolved.parts[1:-1]:
            inner = os.open(name, _PASSED, dir_fd=folder)
            os.close(folder)
            folder = inner
        return os.open(resolved.name or ".", flags, dir_fd=folder)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(resolved)) from error
    finally:
        os.close(folder)


def _close(descriptors: dict[Path, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])

"""A cache of downloads and conversions that all processes of a machine share.

Each entry is a folder with a lock beside it, which the kernel releases when a process ends, however
it ends. A process that fills or removes an entry holds its lock alone. Processes that use the entry
share the lock until they end. So an entry is whole or absent, is filled once, and is never removed
while a process uses it.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from service.disk_full import naming_full_disk
from service.errors import DiskFull
from service.settings import Settings

DEFAULT_SHARE_OF_DISK = 0.5
LOCK_SUFFIX = ".lock"
PARTIAL_SUFFIX = ".partial"
POLL_SECONDS = 0.05
"""The pause before a process looks again whether another has filled an entry."""

BLOCK_BYTES = 512
"""The unit of `st_blocks`, whatever the blocks of the file system."""

log = logging.getLogger("eigenpress.cache")

_used: dict[Path, int] = {}
"""The entries that this process uses, with the descriptors that hold their locks."""


def cached(settings: Settings, kind: str, identity: str, fill: Callable[[Path], None]) -> Path:
    """The folder that `fill` filled for this identity, now or earlier, as a resolved path.

    It stays until this process ends. The folder appears by a rename after `fill` has returned. Of
    the processes that ask at the same time, one fills it and the others wait. Unused entries make
    room for it, and are removed if the disk is full. Raises DiskFull.
    """
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    entry, filled = settings.cache_dir / kind / name, False
    entry.parent.mkdir(parents=True, exist_ok=True)
    lock = _open_lock(entry)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        while not entry.exists():
            _stop_using(entry)  # somebody has removed it by hand
            # Nobody can come to hold alone what two share: give it back first.
            fcntl.flock(lock, fcntl.LOCK_UN)
            # Never wait to hold it alone: who has filled the entry shares the lock from then on.
            if not _lock_alone(lock, wait=False):
                time.sleep(POLL_SECONDS)
            elif not entry.exists():
                _fill(entry, settings, fill)
                filled = True
            fcntl.flock(lock, fcntl.LOCK_SH)  # not atomic: the entry may be removed first
        os.utime(lock)
    except BaseException:
        os.close(lock)
        raise
    if _used.setdefault(entry, lock) != lock:
        os.close(lock)
    if filled:
        trim(settings.cache_dir, _limit_bytes(settings))
    return entry.resolve()


def trim(cache_dir: Path, limit_bytes: int) -> bool:
    """Remove unused entries until the whole ones take no more than `limit_bytes` of the disk.

    The least recently used go first. What killed processes have left goes as well. Returns whether
    anything was removed. Does not raise if something cannot be removed.
    """
    try:
        with _alone(cache_dir / "trim", wait=True):
            return _trim(cache_dir, limit_bytes)
    except OSError as error:
        log.warning("The cache %s cannot be kept within its limit: %s", cache_dir, error)
        return False


def _trim(cache_dir: Path, limit_bytes: int) -> bool:
    locks = sorted(cache_dir.glob(f"*/*{LOCK_SUFFIX}"), key=lambda lock: lock.stat().st_mtime_ns)
    sizes = {lock.with_suffix(""): _disk_bytes(lock.with_suffix("")) for lock in locks}
    total, removed = sum(sizes.values()), False
    for entry, size in sizes.items():
        partial = _partial(entry)
        with _alone(entry, wait=False) as alone:
            if not alone:
                continue
            if total > limit_bytes and entry.exists():
                _remove(partial)
                entry.rename(partial)
                total -= size
                log.info("Removed %s (%d bytes) to make room", entry, size)
            if partial.exists():
                _remove(partial)
                removed = True
    return removed


def _fill(entry: Path, settings: Settings, fill: Callable[[Path], None]) -> None:
    trim(settings.cache_dir, _limit_bytes(settings))
    try:
        _fill_once(entry, fill)
    except DiskFull:
        if not trim(settings.cache_dir, 0):
            raise
        _fill_once(entry, fill)


def _fill_once(entry: Path, fill: Callable[[Path], None]) -> None:
    partial = _partial(entry)
    _remove(partial)
    try:
        with naming_full_disk(partial):
            partial.mkdir()
            fill(partial)
        partial.rename(entry)
    finally:
        _remove(partial)


@contextmanager
def _alone(entry: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of an entry alone. False, unless this shall wait, if another holds it."""
    lock = _open_lock(entry)
    try:
        yield _lock_alone(lock, wait=wait)
    finally:
        os.close(lock)


def _lock_alone(lock: int, *, wait: bool) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open_lock(entry: Path) -> int:
    return os.open(entry.with_suffix(LOCK_SUFFIX), os.O_RDWR | os.O_CREAT, 0o644)


def _stop_using(entry: Path) -> None:
    if (lock := _used.pop(entry, None)) is not None:
        os.close(lock)


def _partial(entry: Path) -> Path:
    return entry.with_suffix(PARTIAL_SUFFIX)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _limit_bytes(settings: Settings) -> int:
    if settings.cache_bytes is not None:
        return settings.cache_bytes
    return int(shutil.disk_usage(settings.cache_dir).total * DEFAULT_SHARE_OF_DISK)


def _disk_bytes(folder: Path) -> int:
    """What the files below a folder take of the disk; 0 without the folder."""
    return BLOCK_BYTES * sum(
        Path(inner, name).lstat().st_blocks for inner, _, names in os.walk(folder) for name in names
    )

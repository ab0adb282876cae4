"""A fetched folder is whole or absent, is fetched once, and stays while it is used."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Event

import pytest

from service.errors import DiskFull
from service.inputs import cache
from service.inputs.cache import cached, trim
from service.settings import Settings

ENTRY_BYTES = 2**20

OTHER_PROCESS = """
import sys
from pathlib import Path
from service.inputs.cache import cached
from service.settings import Settings

def stop(folder: Path) -> None:
    (folder / "half").write_bytes(bytes(100))
    print("ready", flush=True)
    sys.stdin.read()

settings = Settings(data_dir=Path(sys.argv[1]))
cached(settings, "models", "used", lambda folder: (folder / "file").write_bytes(bytes(2**20)))
cached(settings, "models", "begun", stop)
"""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    yield Settings(data_dir=tmp_path)
    use_nothing()


def use_nothing() -> None:
    """What the end of the process does."""
    while cache._used:
        os.close(cache._used.popitem()[1])


def nothing(_: Path) -> None:
    """Fill a folder with nothing."""


def fill(folder: Path) -> None:
    (folder / "file").write_bytes(bytes(ENTRY_BYTES))


def names(settings: Settings) -> set[str]:
    """All that is in the cache beside locks."""
    return {path.name for path in settings.cache_dir.glob("*/*") if path.suffix != ".lock"}


def test_it_is_filled_once(settings: Settings) -> None:
    calls: list[Path] = []

    def fill(folder: Path) -> None:
        calls.append(folder)
        (folder / "file").write_text("x")

    first = cached(settings, "models", "a", fill)
    assert cached(settings, "models", "a", fill) == first
    assert (first / "file").read_text() == "x"
    assert len(calls) == 1
    assert cached(settings, "models", "b", fill) != first


def test_a_failure_leaves_nothing_and_the_next_one_tries_again(settings: Settings) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ConnectionError

    with pytest.raises(ConnectionError):
        cached(settings, "models", "a", fail)
    assert not names(settings)
    whole = cached(settings, "models", "a", lambda folder: (folder / "whole").touch())
    assert [path.name for path in whole.iterdir()] == ["whole"]


def test_what_a_killed_process_left_is_removed(settings: Settings) -> None:
    folder = cached(settings, "models", "a", nothing)
    partial = folder.with_name(f"{folder.name}.partial")
    folder.rename(partial)
    (partial / "half").touch()
    assert not list(cached(settings, "models", "a", nothing).iterdir())


def test_of_several_at_once_one_fetches(settings: Settings) -> None:
    calls: list[int] = []
    together = Barrier(4)

    def fetch(number: int) -> Path:
        together.wait()
        return cached(settings, "models", "a", lambda _: calls.append(number))

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(fetch, range(4)))) == 1
    assert len(calls) == 1


def test_who_waits_takes_what_another_has_filled_and_still_uses(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = cached(settings, "models", "a", nothing)
    entry.rmdir()
    use_nothing()
    has_looked, flock = Event(), fcntl.flock

    def tell(lock: int, operation: int) -> None:
        flock(lock, operation)
        if operation == fcntl.LOCK_UN:  # it saw no entry
            has_looked.set()

    user = os.open(entry.with_suffix(".lock"), os.O_RDWR)
    flock(user, fcntl.LOCK_SH)
    monkeypatch.setattr(fcntl, "flock", tell)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cached, settings, "models", "a", nothing)
        assert has_looked.wait(10)
        entry.mkdir()
        try:
            assert waiting.result(timeout=10) == entry
        finally:
            os.close(user)


def test_an_entry_that_was_removed_by_hand_is_filled_again(settings: Settings) -> None:
    shutil.rmtree(cached(settings, "models", "a", fill))
    assert (cached(settings, "models", "a", fill) / "file").exists()


def test_an_entry_that_is_removed_before_its_use_is_filled_again(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock of who has filled it cannot become a shared one in one step."""
    filled: list[Path] = []
    flock = fcntl.flock

    def remove_first(lock: int, operation: int) -> None:
        flock(lock, operation)
        if operation == fcntl.LOCK_SH and len(filled) == 1:
            filled[0].with_suffix("").rmdir()

    monkeypatch.setattr(fcntl, "flock", remove_first)
    assert cached(settings, "models", "a", filled.append).is_dir()
    assert len(filled) == 2


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, cache_bytes=3 * ENTRY_BYTES)
    entries = {
        identity: cached(settings, kind, identity, fill)
        for identity, kind in (("a", "models"), ("b", "data"), ("c", "gguf"))
    }
    for age, entry in enumerate(reversed(entries.values())):
        os.utime(entry.with_suffix(".lock"), (age, age))  # c was used before b, b before a
    use_nothing()
    assert cached(settings, "gguf", "c", nothing) == entries["c"]  # c is the latest now
    use_nothing()
    latest = cached(settings, "models", "d", fill)
    assert names(settings) == {entries["a"].name, entries["c"].name, latest.name}
    use_nothing()


def test_what_is_used_exceeds_the_limit(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, cache_bytes=0)
    used = cached(settings, "models", "a", fill), cached(settings, "models", "b", fill)
    assert names(settings) == {folder.name for folder in used}
    use_nothing()
    last = cached(settings, "models", "c", fill)
    assert names(settings) == {last.name}
    use_nothing()


def test_the_limit_is_half_of_the_disk(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(ENTRY_BYTES, 0, 0))
    first = cached(settings, "models", "a", fill)
    use_nothing()
    second = cached(settings, "models", "b", fill)
    assert first.name not in names(settings)
    assert second.name in names(settings)


def test_what_counts_is_the_space_on_the_disk(settings: Settings) -> None:
    def fill_sparsely(folder: Path) -> None:
        with (folder / "file").open("wb") as file:
            file.truncate(2**30)

    cached(settings, "models", "a", fill_sparsely)
    use_nothing()
    assert not trim(settings.cache_dir, ENTRY_BYTES)
    assert trim(settings.cache_dir, -1)


def test_an_entry_in_use_by_another_process_stays_until_its_end(settings: Settings) -> None:
    command = [sys.executable, "-c", OTHER_PROCESS, str(settings.data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        try:
            assert other.stdout.readline() == b"ready\n"
            here = names(settings)
            assert len(here) == 2
            assert not trim(settings.cache_dir, 0)
            assert names(settings) == here
        finally:
            other.send_signal(signal.SIGKILL)
    assert trim(settings.cache_dir, 2 * ENTRY_BYTES)  # what it had begun
    (used,) = names(settings)
    assert not used.endswith(".partial")
    assert trim(settings.cache_dir, 0)
    assert not names(settings)


def test_a_full_disk_removes_what_is_unused(settings: Settings) -> None:
    unused = cached(settings, "models", "a", fill)
    use_nothing()
    folder = cached(settings, "models", "b", while_exists(unused, full))
    assert names(settings) == {folder.name}


def test_a_full_disk_with_nothing_unused_is_an_error(settings: Settings) -> None:
    used = cached(settings, "models", "a", fill)
    with pytest.raises(DiskFull):
        cached(settings, "models", "b", full)
    assert names(settings) == {used.name}


def full(folder: Path) -> None:
    (folder / "half").touch()
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def while_exists(entry: Path, act: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda folder: act(folder) if entry.exists() else None


def test_a_cache_that_cannot_be_trimmed_fails_no_job(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Path, __: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    cached(settings, "models", "a", fill)
    use_nothing()
    monkeypatch.setattr(Path, "rename", refuse)
    with caplog.at_level(logging.WARNING):
        assert not trim(settings.cache_dir, 0)
    assert "Permission denied" in caplog.text

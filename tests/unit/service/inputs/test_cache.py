"""A fetched folder is whole or absent, and is fetched once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from service.inputs.cache import cached


def nothing(_: Path) -> None:
    """Fill a folder with nothing."""


def test_it_is_filled_once(tmp_path: Path) -> None:
    calls: list[Path] = []

    def fill(folder: Path) -> None:
        calls.append(folder)
        (folder / "file").write_text("x")

    first = cached(tmp_path, "a", fill)
    assert cached(tmp_path, "a", fill) == first
    assert (first / "file").read_text() == "x"
    assert len(calls) == 1
    assert cached(tmp_path, "b", fill) != first


def test_a_failure_leaves_nothing_and_the_next_one_tries_again(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise ConnectionError

    with pytest.raises(ConnectionError):
        cached(tmp_path, "a", fail)
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    whole = cached(tmp_path, "a", lambda folder: (folder / "whole").touch())
    assert [path.name for path in whole.iterdir()] == ["whole"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    folder = cached(tmp_path, "a", nothing)
    partial = folder.with_name(f"{folder.name}.partial")
    folder.rename(partial)
    (partial / "half").touch()
    assert not list(cached(tmp_path, "a", nothing).iterdir())


def test_of_several_at_once_one_fetches(tmp_path: Path) -> None:
    calls: list[int] = []
    together = Barrier(4)

    def fetch(number: int) -> Path:
        together.wait()
        return cached(tmp_path, "a", lambda _: calls.append(number))

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(fetch, range(4)))) == 1
    assert len(calls) == 1

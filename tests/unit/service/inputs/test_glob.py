"""Patterns select the files that a user of globs expects, on any path, quickly."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.inputs.glob import is_plain, selected_files, selects

SELECTED = [
    ("**/*", "a.txt"),
    ("**/*", "deep/er/a.txt"),
    ("*.txt", "a.txt"),
    ("**/*.txt", "a.txt"),
    ("**/*.txt", "b/c/a.txt"),
    ("train/**", "train/a/b.txt"),
    ("train/**/*.jsonl", "train/x.jsonl"),
    ("a/**/b/**/c", "a/b/x/b/c"),
    ("part-?.txt", "part-1.txt"),
    ("part-[0-9].txt", "part-7.txt"),
    ("a b/ü*.txt", "a b/übung.txt"),
]
NOT_SELECTED = [
    ("*.txt", "deep/a.txt"),
    ("*", "deep/a.txt"),
    ("train/*.txt", "train/deep/a.txt"),
    ("part-?.txt", "part-10.txt"),
    ("part-[0-9].txt", "part-x.txt"),
    ("**/*.txt", "a.txt.gz"),
    ("**/*", ".hidden"),
    ("**/*", ".git/config"),
    (".git/*", ".git/config"),
    ("../*", "a.txt"),
    ("/a.txt", "a.txt"),
    ("", "a.txt"),
    ("A.TXT", "a.txt"),
]


@pytest.mark.parametrize(("pattern", "path"), SELECTED)
def test_selects(pattern: str, path: str) -> None:
    assert selects(pattern, path)


@pytest.mark.parametrize(("pattern", "path"), NOT_SELECTED)
def test_does_not_select(pattern: str, path: str) -> None:
    assert not selects(pattern, path)


NAME = st.text("ab", min_size=1, max_size=3)


@given(st.lists(NAME, min_size=1, max_size=6))
def test_a_plain_path_selects_itself_and_everything_selects_it(names: list[str]) -> None:
    path = "/".join(names)
    assert selects(path, path)
    assert selects("**/*", path)
    assert selects("**/**/**/" + names[-1], path)


@pytest.mark.timeout(20)
def test_no_pattern_is_slow() -> None:
    assert not selects("**/" * 150 + "x", "a/" * 1000 + "a")
    assert not selects("*a" * 250 + "b", "a" * 255)


def test_selected_files_are_found_without_following_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    inside = tmp_path / "inside"
    for folder in (outside, inside / "deep", inside / ".hidden"):
        folder.mkdir(parents=True)
        (folder / "a.txt").touch()
    (inside / "link").symlink_to(outside)
    (inside / "up").symlink_to(inside)
    assert list(selected_files(inside, "**/*")) == ["deep/a.txt"]


@pytest.mark.parametrize("path", ["a", "a/b.txt", "..a/b"])
def test_plain_paths(path: str) -> None:
    assert is_plain(path)


@pytest.mark.parametrize("path", ["", "/a", "a//b", "../a", "a/..", "./a", "a\0b"])
def test_paths_that_are_not_plain(path: str) -> None:
    assert not is_plain(path)

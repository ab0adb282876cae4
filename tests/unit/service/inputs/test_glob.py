"""Patterns select the files that a user of globs expects, on any path, quickly."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.inputs import glob
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


def oracle(pattern: Sequence[str], names: Sequence[str]) -> bool:
    """Whether the names of a pattern match those of a path; it tries everything."""
    if not pattern:
        return not names
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return oracle(rest, names) or (bool(names) and oracle(pattern, names[1:]))
    return bool(names) and matches(first, names[0]) and oracle(rest, names[1:])


def matches(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return matches(pattern[1:], name) or (bool(name) and matches(pattern, name[1:]))
    return bool(name) and pattern[0] in ("?", name[0]) and matches(pattern[1:], name[1:])


WILD_NAME = st.one_of(st.just("**"), st.text("ab*?", min_size=1, max_size=4))


@given(st.lists(WILD_NAME, min_size=1, max_size=7), st.lists(NAME, min_size=1, max_size=6))
def test_selects_what_the_oracle_does(pattern: list[str], names: list[str]) -> None:
    assert selects("/".join(pattern), "/".join(names)) == oracle(pattern, names)


@given(
    st.lists(WILD_NAME, min_size=1, max_size=5),
    st.sets(st.lists(NAME, min_size=1, max_size=4).map("/".join), max_size=8),
)
def test_files_are_selected_as_paths_are(pattern: list[str], paths: set[str]) -> None:
    with TemporaryDirectory() as root:
        for path in paths:
            with suppress(FileExistsError, NotADirectoryError, IsADirectoryError):
                Path(root, path).parent.mkdir(parents=True, exist_ok=True)
                Path(root, path).touch(exist_ok=False)
        there = {
            each.relative_to(root).as_posix() for each in Path(root).rglob("*") if each.is_file()
        }
        whole = "/".join(pattern)
        assert set(selected_files(Path(root), whole)) == {p for p in there if selects(whole, p)}


SLOW = [
    "**/" * 170 + "x",
    "**/*/" * 100 + "x",
    "**/?/" * 8 + "a/" * 200 + "x",
    "**/" + "a/" * 250 + "x",
    "*a" * 250 + "b",
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("pattern", SLOW)
def test_no_pattern_is_slow(pattern: str) -> None:
    for number in range(2000):
        assert not selects(pattern, f"{number}/" + "a/" * 100 + "a" * 255)


@pytest.mark.timeout(20)
def test_a_deep_tree_is_walked(tmp_path: Path) -> None:
    """Deeper than Python's functions may call themselves."""
    folders = [tmp_path.joinpath(*["a"] * depth) for depth in range(1, 1200)]
    for folder in folders:
        folder.mkdir()
    file = folders[-1] / "b.txt"
    file.touch()
    assert list(selected_files(tmp_path, "**/*.txt")) == [file.relative_to(tmp_path).as_posix()]
    assert not list(selected_files(tmp_path, "**/" * 170 + "x"))
    file.unlink()
    for folder in reversed(folders):  # pytest's own removal does not go so deep
        folder.rmdir()


def test_folders_that_hold_nothing_wanted_are_not_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "test", "train/deep"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").touch()
    monkeypatch.setattr(glob, "MAX_ENTRIES", 4)
    assert list(selected_files(tmp_path, "train/*.txt")) == ["train/a.txt"]
    with pytest.raises(OSError, match="more than 4 files and folders"):
        list(selected_files(tmp_path, "**/*.txt"))


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

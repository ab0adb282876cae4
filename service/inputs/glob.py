"""Which files below a folder, a prefix or a repository a glob pattern selects.

A pattern means the same for every source. Paths use ``/``. ``*`` and ``?`` match within one name,
``**`` matches any number of folders (none included), and ``[...]`` matches a class of characters.
Hidden files, and files below hidden folders, are never selected.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from service.inputs.opening import scan_folder

WILDCARDS = "*?["
ANY_FOLDERS = "**"


def has_wildcard(pattern: str) -> bool:
    """Whether the pattern can select more than the one path that it spells."""
    return any(character in pattern for character in WILDCARDS)


def is_plain(path: str) -> bool:
    """Whether the path stays below whatever folder it is put in."""
    return not any(name in ("", ".", "..") for name in path.split("/")) and "\0" not in path


def selects(pattern: str, path: str) -> bool:
    """Whether the pattern selects the file at this relative path."""
    names = path.split("/")
    return not any(name.startswith(".") for name in names) and _matches(pattern, names)


def selected_files(root: Path, pattern: str) -> Iterator[str]:
    """Relative paths of the selected files below `root`, a resolved path, in no particular order.

    Links to folders are not entered. Raises OSError for a folder that cannot be read.
    """
    pending = [""]
    while pending:
        folder = pending.pop()
        with scan_folder(root / folder) as entries:
            for entry in entries:
                path = f"{folder}{entry.name}"
                if _is_folder(entry):
                    if not entry.is_symlink() and not entry.name.startswith("."):
                        pending.append(f"{path}/")
                elif selects(pattern, path):
                    yield path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links, or one to a place that this process must not look at
        return False


def _matches(pattern: str, names: list[str]) -> bool:
    """Run the pattern's steps as a finite automaton, so that no pattern is slow."""
    steps = _steps(pattern)
    states = _with_skips({0}, steps)
    for name in names:
        states = _with_skips(
            {after for state in states for after in _advance(state, name, steps)}, steps
        )
    return len(steps) in states


def _advance(state: int, name: str, steps: tuple[re.Pattern[str] | None, ...]) -> Iterator[int]:
    if state == len(steps):
        return
    step = steps[state]
    if step is None:
        yield state
    elif step.match(name):
        yield state + 1


def _with_skips(states: set[int], steps: tuple[re.Pattern[str] | None, ...]) -> set[int]:
    """These states, and those reached when ``**`` matches no folder."""
    reached = set(states)
    for state in sorted(states):
        while state < len(steps) and steps[state] is None:
            state += 1
            reached.add(state)
    return reached


@lru_cache(maxsize=64)
def _steps(pattern: str) -> tuple[re.Pattern[str] | None, ...]:
    """One step per name of the pattern; None is ``**``."""
    return tuple(
        None if step == ANY_FOLDERS else re.compile(fnmatch.translate(step))
        for step in pattern.split("/")
    )

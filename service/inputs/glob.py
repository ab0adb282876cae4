"""Which files below a folder, a prefix or a repository a glob pattern selects.

A pattern means the same for every source. Paths use ``/``. ``*`` and ``?`` match within one name,
``**`` matches any number of folders (none included), and ``[...]`` matches a class of characters.
Hidden files, and files below hidden folders, are never selected.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from service.inputs.opening import scan_folder

WILDCARDS = "*?["
ANY_FOLDERS = "**"
MAX_ENTRIES = 1_000_000
"""The files and folders below a folder of texts; to look at them takes seconds."""


def has_wildcard(pattern: str) -> bool:
    """Whether the pattern can select more than the one path that it spells."""
    return any(character in pattern for character in WILDCARDS)


def is_plain(path: str) -> bool:
    """Whether the path stays below whatever folder it is put in."""
    return not any(name in ("", ".", "..") for name in path.split("/")) and "\0" not in path


def selects(pattern: str, path: str) -> bool:
    """Whether the pattern selects the file at this relative path."""
    compiled = _compiled(pattern)
    states = compiled.start
    for name in path.split("/"):
        states = compiled.after(states, name)
    return compiled.accepts(states)


def selected_files(root: Path, pattern: str) -> Iterator[str]:
    """Relative paths of the selected files below `root`, a resolved path, in no particular order.

    Links to folders are not entered, nor are folders in which the pattern can select nothing.
    Raises OSError for a folder that cannot be read, and for more than `MAX_ENTRIES`.
    """
    compiled = _compiled(pattern)
    seen = 0
    pending = [("", compiled.start)]
    while pending:
        folder, states = pending.pop()
        with scan_folder(root / folder) as entries:
            for entry in entries:
                seen += 1
                if seen > MAX_ENTRIES:
                    raise OSError(f"there are more than {MAX_ENTRIES} files and folders")
                path, after = folder + entry.name, compiled.after(states, entry.name)
                if not after:
                    continue
                if not _is_folder(entry):
                    if compiled.accepts(after):
                        yield path
                elif not entry.is_symlink():
                    pending.append((f"{path}/", after))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether the entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


@dataclass(frozen=True)
class _Compiled:
    """A pattern as a finite automaton, so that no pattern is slow.

    A set of states is a number. Its bit i stands for the paths that match the first i names of the
    pattern, and so are at the name with that index.
    """

    any_folders: int  # each field below: the bits of such names
    literals: Mapping[str, int]
    wild: tuple[tuple[re.Pattern[str], int], ...]
    end: int

    @property
    def start(self) -> int:
        return self._skipping(1)

    def after(self, states: int, name: str) -> int:
        """The states after one more name of a path; 0 if the pattern cannot select it."""
        if name.startswith("."):
            return 0
        matched = self.literals.get(name, 0)
        for expression, bits in self.wild:
            if states & bits and expression.match(name):
                matched |= bits
        return self._skipping((states & matched) << 1 | states & self.any_folders)

    def accepts(self, states: int) -> bool:
        return bool(states & self.end)

    def _skipping(self, states: int) -> int:
        """These states, and those reached when ``**`` matches no folder."""
        return states | (states & self.any_folders) << 1


@lru_cache(maxsize=64)
def _compiled(pattern: str) -> _Compiled:
    names = [name for kind, run in groupby(pattern.split("/")) for name in _once(kind, run)]
    bits: dict[str, int] = {}
    for index, name in enumerate(names):
        bits[name] = bits.get(name, 0) | 1 << index
    any_folders = bits.pop(ANY_FOLDERS, 0)
    return _Compiled(
        any_folders=any_folders,
        literals={name: at for name, at in bits.items() if not has_wildcard(name)},
        wild=tuple(
            (re.compile(fnmatch.translate(name)), at)
            for name, at in bits.items()
            if has_wildcard(name)
        ),
        end=1 << len(names),
    )


def _once(name: str, run: Iterable[str]) -> Iterable[str]:
    """A run of equal names; a run of ``**`` matches what one of them matches."""
    return (name,) if name == ANY_FOLDERS else run

"""The files of attempts on the machine that a worker runs on."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path


def attempts_in(folder: Path) -> list[str]:
    """The names of the attempts that have files in `folder`."""
    return [found.name for found in folder.glob("job-*-*")]


def remove_attempts(folder: Path, names: Iterable[str]) -> None:
    """Remove the files of these attempts."""
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)

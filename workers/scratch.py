"""The files of attempts on the machines that they run on, and what killed attempts have left.

Folders are looked at before the database is asked which attempts are under way: what is there and
not under way then is dead, and an attempt that begins meanwhile is never taken for it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import ray

from workers.progress import Progress


def attempts_in(folder: Path) -> list[str]:
    """The names of the attempts that have files there."""
    return [found.name for found in folder.glob("job-*-*")]


def remove_attempts(folder: Path, names: Iterable[str]) -> None:
    """Remove the files of these attempts."""
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)


def sweep_scratch(workers: Sequence[Any], progress: Progress) -> None:
    """Have every worker remove from its machine what dead attempts have left there."""
    found = ray.get([worker.attempts_in_scratch.remote() for worker in workers])
    live = progress.in_flight()
    dead = [[name for name in names if name not in live] for names in found]
    ray.get([w.sweep_scratch.remote(names) for w, names in zip(workers, dead, strict=True)])

"""A cache of downloads that all processes of a machine share."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from service.disk_full import naming_full_disk


def cached(directory: Path, identity: str, fill: Callable[[Path], None]) -> Path:
    """Return the folder that `fill` filled for this identity, now or earlier, as a resolved path.

    The folder appears by a rename after `fill` has returned, so it is never incomplete. Of the
    processes that ask at the same time, one fetches and the others wait. Raises DiskFull.
    """
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    target, partial = directory / name, directory / f"{name}.partial"
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory / f"{name}.lock"):
        if not target.exists():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            try:
                with naming_full_disk(partial):
                    fill(partial)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return target.resolve()

"""Files with secrets, and the folder around them, which their owner alone can read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from service.errors import InvalidParameter

FOLDER_MODE = 0o700
FILE_MODE = 0o600


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 0600. It is never seen in part, nor with another mode."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(partial, flags, FILE_MODE), "w") as file:
        file.write(text)
    partial.replace(path)


def private_folder(folder: Path, secrets: tuple[str, ...]) -> None:
    """Make the folder, or take others' rights to one that exists and to the secret files in it.

    `secrets` are relative paths, of files that may be missing. Raises `InvalidParameter` if another
    user owns the folder or one of them.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=FOLDER_MODE)
    _tighten(folder, FOLDER_MODE)
    for path in map(folder.joinpath, secrets):
        if path.exists():
            _tighten(path, FILE_MODE)


def _tighten(path: Path, mode: int) -> None:
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise InvalidParameter(
            f"{path} belongs to another user, who could read or replace the server's keys. Choose "
            "another --data-dir, or change its owner.",
            param="--data-dir",
        )
    if stat.S_IMODE(found.st_mode) & ~mode:
        path.chmod(mode)

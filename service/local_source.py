"""Local paths of a request, kept to the folders that the installation allows."""

from __future__ import annotations

import errno
from pathlib import Path

from service.errors import InvalidParameter, PathNotAllowed, UserError
from service.settings import Settings


def allowed_path(path: str, settings: Settings, not_found: type[UserError], param: str) -> Path:
    """The path with every link resolved.

    Whether it is allowed is decided first, so that nothing is told about other paths. Raises
    `InvalidParameter`, `PathNotAllowed` or `not_found`, about `param`.
    """
    if not Path(path).is_absolute() or "\0" in path:
        raise InvalidParameter(f"'{path}' is not an absolute path.", param=param)
    resolved = _resolve(Path(path), not_found, param)
    refuse_outside(resolved, settings, param)
    if not resolved.exists():
        raise not_found(f"There is nothing at {path}.", param=param)
    return resolved


def refuse_outside(resolved: Path, settings: Settings, param: str) -> None:
    """Raise `PathNotAllowed` unless the resolved path lies in an allowed root."""
    if any(resolved.is_relative_to(root) for root in settings.allowed_roots):
        return
    roots = ", ".join(map(str, settings.allowed_roots))
    raise PathNotAllowed(
        f"{resolved} lies outside the folders that this server may read: {roots}."
        if roots
        else "This server reads no local paths; EIGENPRESS_ALLOWED_ROOTS would name them.",
        param=param,
    )


def _resolve(path: Path, not_found: type[UserError], param: str) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:  # how Python before 3.13 reports a loop of links
        raise not_found(f"{path} is a loop of links.", param=param) from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES):
            raise not_found(f"{path} cannot be reached: {error.strerror}.", param=param) from error
        raise

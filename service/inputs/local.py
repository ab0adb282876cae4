"""Local paths of a request, which must lie in folders that the installation allows."""

from __future__ import annotations

from pathlib import Path

from service.errors import InvalidParameter, PathNotAllowed, UserError
from service.settings import Settings


def allowed_path(path: str, settings: Settings, not_found: type[UserError], param: str) -> Path:
    """The path with every link resolved.

    Checks first that the path is allowed, so that errors reveal nothing about other paths. Raises
    `InvalidParameter`, `PathNotAllowed` or `not_found`, about `param`.
    """
    if not Path(path).is_absolute() or "\0" in path:
        raise InvalidParameter(f"'{path}' is not an absolute path.", param=param)
    try:
        resolved = Path(path).resolve()
        refuse_outside(path, resolved, settings, param)
        exists = resolved.exists()
    except (OSError, RuntimeError) as error:  # too long, unreachable, a loop of links
        raise not_found(f"{path} cannot be reached: {error}", param=param) from error
    if not exists:
        raise not_found(f"There is nothing at {path}.", param=param)
    return resolved


def refuse_outside(path: str, resolved: Path, settings: Settings, param: str) -> None:
    """Raise `PathNotAllowed` unless the path, resolved, lies in an allowed root.

    The server's data folder, which has its keys and everyone's jobs, is never allowed, nor is a
    folder that contains it. The same goes for an SQLite database elsewhere, for a second reason:
    if a process that has it open closes another descriptor of its file, SQLite's locks are gone,
    and processes write into different journals. The error does not tell where links lead, which may
    be a secret.
    """
    ours = {"data folder": settings.data_dir, "jobs database": settings.database_file}
    for name, place in ours.items():
        if place is not None and _overlap(resolved, place.resolve()):
            raise PathNotAllowed(
                f"{path} is part of the server's {name}, or contains it; no job reads that.",
                param=param,
            )
    if any(resolved.is_relative_to(root) for root in settings.allowed_roots):
        return
    roots = ", ".join(map(str, settings.allowed_roots))
    raise PathNotAllowed(
        f"{path} lies outside the folders that this server may read, or leads out of them: {roots}."
        if roots
        else "This server reads no local paths. Its operator can set EIGENPRESS_ALLOWED_ROOTS.",
        param=param,
    )


def _overlap(path: Path, place: Path) -> bool:
    """Whether one is in the other. Beside an SQLite database lie its journals, ``DATABASE-wal``."""
    return (
        path.is_relative_to(place)
        or place.is_relative_to(path)
        or (path.parent == place.parent and path.name.startswith(f"{place.name}-"))
    )

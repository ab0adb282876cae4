"""The places that a tenant's jobs may read: its own, within those of the installation."""

from __future__ import annotations

from pathlib import Path

from service.domain.tenant import Places
from service.settings import Settings


def within(settings: Settings, places: Places) -> Settings:
    """The settings, whose places are those that the installation and the tenant both allow."""
    return settings.model_copy(
        update={
            "allowed_roots": _common_roots(settings.allowed_roots, places.allowed_roots),
            "allowed_s3_prefixes": _common_prefixes(
                settings.allowed_s3_prefixes, places.allowed_s3_prefixes
            ),
        }
    )


def _common_roots(ours: tuple[Path, ...], theirs: tuple[str, ...] | None) -> tuple[Path, ...]:
    if theirs is None:
        return ours
    roots = [Path(root) for root in theirs]
    inside = [root for root in roots if any(root.is_relative_to(outer) for outer in ours)]
    around = [root for root in ours if any(root.is_relative_to(outer) for outer in roots)]
    return tuple(dict.fromkeys((*inside, *around)))


def _common_prefixes(
    ours: tuple[str, ...] | None, theirs: tuple[str, ...] | None
) -> tuple[str, ...] | None:
    """Prefixes end with a slash; None stands for every place."""
    if ours is None or theirs is None:
        return theirs if ours is None else ours
    inside = [prefix for prefix in theirs if prefix.startswith(ours)]
    around = [prefix for prefix in ours if prefix.startswith(theirs)]
    return tuple(dict.fromkeys((*inside, *around)))

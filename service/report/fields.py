"""Reading of a report's fields, any of which may be missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Part = Mapping[str, Any]


def at(part: Any, *path: str) -> Any:
    """The value at a path; None where there is none."""
    for name in path:
        part = part.get(name) if isinstance(part, Mapping) else None
    return part


def names(models: Sequence[Part], field: str) -> list[str]:
    """The keys of a field in any of the models, in their order."""
    return list({name: None for model in models for name in at(model, field) or ()})

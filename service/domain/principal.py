"""Who makes a request, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """What a key allows; each scope includes those before it."""

    READER = "reader"
    """Read the tenant's jobs, results and datasets, and estimate jobs."""
    SUBMITTER = "submitter"
    """Submit, change and delete them."""
    ADMIN = "admin"
    """Manage the installation's tenants and keys, and read its audit log."""

    def includes(self, other: Scope) -> bool:
        """Whether a key of this scope may do what one of the other scope may."""
        order = list(Scope)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True)
class Principal:
    """The key of a request: its id, its tenant, its scope and its name."""

    key_id: str
    tenant: str
    scope: Scope
    key_name: str | None = None

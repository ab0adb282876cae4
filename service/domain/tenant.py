"""Tenants: the teams of an installation, which see nothing of one another."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Limits:
    """What a tenant may have at a time; None: no more than the installation allows."""

    max_running_jobs: int | None = None
    max_queued_jobs: int | None = None
    max_stored_bytes: int | None = None
    """Of its artifacts and datasets in the bucket, and of its uploads under way."""


@dataclass(frozen=True)
class Places:
    """What a tenant's jobs may read, within what the installation allows; None: all of that."""

    allowed_roots: tuple[str, ...] | None = None
    allowed_s3_prefixes: tuple[str, ...] | None = None


EVERY_PLACE = Places()


@dataclass(frozen=True)
class Tenant:
    """A tenant, its limits and the places that its jobs may read."""

    name: str
    created_at: datetime | None
    """None for one that an earlier version made."""
    limits: Limits
    places: Places


@dataclass(frozen=True)
class Usage:
    """What a tenant has at the moment."""

    running_jobs: int
    queued_jobs: int
    stored_bytes: int

"""The bodies about tenants."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.schema import Schema
from service.domain import tenant as tenants
from service.domain.spec.fields import NAME_PATTERN
from service.domain.spec.sources import S3_URI_PATTERN

MAX_PLACES = 100
MAX_BYTES = 2**63 - 1

FolderList = Annotated[
    list[Annotated[str, Field(pattern=r"^/[^\x00]*$", max_length=1024)]],
    Field(max_length=MAX_PLACES),
]
PrefixList = Annotated[
    list[Annotated[str, Field(pattern=S3_URI_PATTERN, max_length=1024)]],
    Field(max_length=MAX_PLACES),
]


class TenantSettings(BaseModel):
    """What a tenant may have, and what its jobs may read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_running_jobs: int | None = Field(
        default=None, ge=0, le=10_000, description="Null: as many as any tenant."
    )
    max_queued_jobs: int | None = Field(
        default=None, ge=0, le=1_000_000, description="Null: any number."
    )
    max_stored_bytes: int | None = Field(
        default=None,
        ge=0,
        le=MAX_BYTES,
        description="Of artifacts, datasets, and what uploads under way have sent; null: any.",
    )
    allowed_roots: FolderList | None = Field(
        default=None,
        description="Folders that its jobs may read, below those of the server; null: all of them.",
        examples=[["/data/team-a"]],
    )
    allowed_s3_prefixes: PrefixList | None = Field(
        default=None,
        description="Places that its jobs may read, below those of the server; null: all of them.",
        examples=[["s3://team-a/models"]],
    )

    def limits(self) -> tenants.Limits:
        return tenants.Limits(self.max_running_jobs, self.max_queued_jobs, self.max_stored_bytes)

    def places(self) -> tenants.Places:
        """The places with folders resolved and prefixes closed, as they are compared."""
        roots, prefixes = self.allowed_roots, self.allowed_s3_prefixes
        return tenants.Places(
            None if roots is None else tuple(str(Path(root).resolve()) for root in roots),
            None if prefixes is None else tuple(f"{prefix.rstrip('/')}/" for prefix in prefixes),
        )


class NewTenant(TenantSettings):
    """A tenant to make."""

    name: str = Field(pattern=NAME_PATTERN, examples=["team-a"])


class Tenant(Schema):
    """A tenant."""

    name: str
    created_at: datetime | None = Field(description="Null if an earlier version made it.")
    max_running_jobs: int | None
    max_queued_jobs: int | None
    max_stored_bytes: int | None
    allowed_roots: list[str] | None
    allowed_s3_prefixes: list[str] | None

    @classmethod
    def of(cls, tenant: tenants.Tenant) -> Self:
        limits, places = tenant.limits, tenant.places
        return cls(
            name=tenant.name,
            created_at=tenant.created_at,
            max_running_jobs=limits.max_running_jobs,
            max_queued_jobs=limits.max_queued_jobs,
            max_stored_bytes=limits.max_stored_bytes,
            allowed_roots=None if places.allowed_roots is None else [*places.allowed_roots],
            allowed_s3_prefixes=(
                None if places.allowed_s3_prefixes is None else [*places.allowed_s3_prefixes]
            ),
        )


class TenantPage(Schema):
    """Tenants, by name."""

    tenants: list[Tenant]
    next_cursor: str | None = Field(
        default=None, description="Pass as `cursor` for the next page; null on the last one."
    )


class Usage(Schema):
    """What a tenant has at the moment."""

    running_jobs: int
    queued_jobs: int
    stored_bytes: int = Field(
        description="Of its artifacts, its datasets, and what its uploads under way have sent."
    )

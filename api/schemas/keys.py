"""The bodies about API keys."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.schema import Schema
from service.domain.principal import Scope
from service.domain.spec.fields import NAME_PATTERN

MAX_KEY_SECONDS = 315_360_000  # ten years
KEY_ID_EXAMPLE = "k3x9v0qd27sp"


class NewKey(BaseModel):
    """A key to make."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scope: Scope = Field(
        description="`reader` reads; `submitter` also submits, changes and deletes; `admin` also "
        "manages tenants and keys."
    )
    tenant: str = Field(default="default", pattern=NAME_PATTERN)
    name: str | None = Field(
        default=None, pattern=NAME_PATTERN, description="Who or what has it.", examples=["laptop"]
    )
    expires_in_seconds: int | None = Field(
        default=None, ge=60, le=MAX_KEY_SECONDS, description="Unset: it does not expire."
    )


class Key(Schema):
    """A key, without its secret."""

    id: str = Field(examples=[KEY_ID_EXAMPLE])
    tenant: str
    scope: Scope
    name: str | None
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = Field(description="To the minute.")


class CreatedKey(Key):
    """A new key; nothing shows its text again."""

    key: str = Field(description="Send it as `Authorization: Bearer`.")


class KeyPage(Schema):
    """Keys, by id."""

    keys: list[Key]
    next_cursor: str | None = Field(
        default=None, description="Pass as `cursor` for the next page; null on the last one."
    )


class CurrentKey(Schema):
    """The key of the request."""

    id: str = Field(description="`admin` for the key from the server's settings.")
    tenant: str
    scope: Scope

"""What all bodies of responses share. Times are RFC 3339 in UTC, sizes are bytes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Schema(BaseModel):
    """A response, made from an object of the store and not changed afterwards."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

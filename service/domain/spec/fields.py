"""What all parts of a specification share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import LiteralString

from pydantic import BaseModel, BeforeValidator, ConfigDict
from pydantic_core import PydanticCustomError, PydanticKnownError

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"


class Body(BaseModel):
    """Strict and closed: no unknown fields, no coercion, no change after validation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def array(max_length: int) -> BeforeValidator:
    """Takes a JSON array as a tuple; refuses a longer one before its items are validated.

    Pydantic's own bound comes after the items, and reports every wrong one.
    """

    def accept(value: object) -> object:
        if not isinstance(value, list):
            return value
        if len(value) > max_length:
            bound = {"field_type": "Array", "max_length": max_length, "actual_length": len(value)}
            raise PydanticKnownError("too_long", bound)
        return tuple(value)

    return BeforeValidator(accept)


def refuse_repeated(names: Sequence[str], code: LiteralString, message: LiteralString) -> None:
    """Raise the error for the first name that occurs more than once."""
    for name in names:
        if names.count(name) > 1:
            raise PydanticCustomError(code, message, {"name": name})

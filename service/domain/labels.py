"""Labels of a job, such as ``team=ml``, by which its user finds it again.

The rules are those of Kubernetes, except that ``/`` is a character like others, and that a value
may have any printable characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError, PydanticKnownError

from service.errors import InvalidParameter
from service.printable import printable, shortened

MAX_LABELS = 16
MAX_CHANGES = 2 * MAX_LABELS
"""Enough to replace all labels by others."""
MAX_VALUE_CHARACTERS = 63
LABEL_NAME_PATTERN = r"^[a-z0-9]([a-z0-9._/-]{0,61}[a-z0-9])?$"


def _at_most(length: int) -> BeforeValidator:
    """Refuses a longer object before its members are validated."""

    def accept(value: object) -> object:
        if isinstance(value, Mapping) and len(value) > length:
            bound = {"field_type": "Object", "max_length": length, "actual_length": len(value)}
            raise PydanticKnownError("too_long", bound)
        return value

    return BeforeValidator(accept)


def _printable(value: str) -> str:
    if not value.isprintable():
        raise PydanticCustomError("invalid_parameter", "has a character that is not printable")
    return value


LabelName = Annotated[str, Field(pattern=LABEL_NAME_PATTERN)]
LabelValue = Annotated[str, Field(max_length=MAX_VALUE_CHARACTERS), AfterValidator(_printable)]
Labels = Annotated[dict[LabelName, LabelValue], Field(max_length=MAX_LABELS), _at_most(MAX_LABELS)]
LabelChanges = Annotated[
    dict[LabelName, LabelValue | None], Field(max_length=MAX_CHANGES), _at_most(MAX_CHANGES)
]


def read_label(text: str) -> tuple[str, str]:
    """The name and the value in ``team=ml``. Raises ValueError with a message for users."""
    shown = shortened(printable(text))
    name, equals, value = text.partition("=")
    if not equals or not re.fullmatch(LABEL_NAME_PATTERN, name):
        raise ValueError(
            f"'{shown}' is not NAME=VALUE, such as team=ml; a name has up to 63 of a-z 0-9 . _ / -"
        )
    if len(value) > MAX_VALUE_CHARACTERS or not value.isprintable():
        most = MAX_VALUE_CHARACTERS
        raise ValueError(f"'{shown}' needs a value of at most {most} printable characters")
    return name, value


def merged(labels: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """The labels after these changes, of which None removes one.

    Raises InvalidParameter if they are too many.
    """
    both = {**labels, **changes}
    left = {name: value for name, value in both.items() if value is not None}
    if len(left) > MAX_LABELS:
        raise InvalidParameter(
            f"labels: the job would have {len(left)}; at most {MAX_LABELS} are allowed. Remove one "
            "by the value null.",
            param="labels",
        )
    return left

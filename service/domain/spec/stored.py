"""Reads specifications from the database, where a newer version may have written them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypeVar

from pydantic import ValidationError

from service.domain.spec.fields import Body
from service.domain.spec.job import JobSpec, Limits
from service.errors import SpecificationUnknown
from service.printable import shortened

UNION_FIELDS = frozenset({"model", "data", "targets", "tasks"})
"""Fields of one type or another; pydantic puts that type's tag into an error's location, after
the field or, in an array, after its index."""

NAME_OF_MEMBER = "[key]"
"""Pydantic ends an error's location with it where the name of a member is at fault."""

Read = TypeVar("Read", bound="Body")


def read_stored(job_id: str, stored: str) -> JobSpec:
    """The specification of a job as it is stored. Raises SpecificationUnknown."""
    document = json.loads(stored)
    if isinstance(calibration := document.get("calibration"), dict):
        calibration.pop("gradient_checkpointing", None)  # an older field, without effect on results
    return _read(JobSpec, job_id, document)


def read_stored_limits(job_id: str, stored: str) -> Limits:
    """The limits of a job, all that a dispatcher reads of its specification.

    Raises SpecificationUnknown.
    """
    return _read(Limits, job_id, json.loads(stored).get("limits", {}), "limits")


def _read(body: type[Read], job_id: str, document: object, *field: str) -> Read:
    try:
        return body.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = ".".join(field_path((*field, *first["loc"])))
        raise SpecificationUnknown(
            f"A newer version of Eigenpress wrote the specification of {job_id}; this version "
            f"{_unknown(param, first['type'], first['input'])}. Install the newer version on the "
            "APIs, the dispatchers and every node of Ray, then retry the job.",
            param=param,
        ) from error


def _unknown(param: str, kind: str, value: object) -> str:
    match kind:
        case "extra_forbidden":
            return f"does not know the field '{param}'"
        case "missing":
            return f"needs the field '{param}', which is missing"
        case _:
            shown = shortened(json.dumps(value, default=str))
            return f"does not know the value {shown} of the field '{param}'"


def field_path(location: Sequence[str | int]) -> list[str]:
    """The parts of a field's name as its user wrote it: without the tags of unions.

    ``("model", "local", "path")``, an error's location, is ``model.path``.
    """
    return [
        str(part)
        for i, part in enumerate(location)
        if part != NAME_OF_MEMBER and not _is_tag(location[: i + 1])
    ]


def _is_tag(parts: Sequence[str | int]) -> bool:
    """Whether the last part of a location is the tag of a union."""
    *before, last = parts
    if isinstance(last, int):
        return False
    if before and isinstance(before[-1], int):
        before.pop()
    return bool(before) and before[-1] in UNION_FIELDS

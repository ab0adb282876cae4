"""The query parameters that choose which jobs a list has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, get_args

from fastapi import Depends, Query
from pydantic import AfterValidator, AwareDatetime

from service.domain.labels import MAX_LABELS, read_label
from service.domain.spec.fields import NAME_PATTERN
from service.domain.spec.job import Method
from service.domain.states import JobState
from service.errors import InvalidParameter
from service.store.listing import JobFilter

MAX_LABEL_CHARACTERS = 200
"""Of one `label`: a name, an equals sign and a value have fewer."""


def _utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("the time is out of range") from None


Time = Annotated[AwareDatetime, AfterValidator(_utc)]


def _filter(
    state: Annotated[
        tuple[JobState, ...],
        Query(max_length=len(JobState), description="Only jobs in this state; may be repeated."),
    ] = (),
    method: Annotated[
        tuple[Method, ...],
        Query(
            max_length=len(get_args(Method)),
            description="Only jobs with this method; may be repeated.",
        ),
    ] = (),
    name: Annotated[
        str | None, Query(pattern=NAME_PATTERN, description="Only jobs with this name.")
    ] = None,
    label: Annotated[
        tuple[Annotated[str, Query(max_length=MAX_LABEL_CHARACTERS)], ...],
        Query(
            max_length=MAX_LABELS,
            description="Only jobs with this label, as `team=ml`; repeated: with all of them.",
            openapi_examples={"one": {"value": ["team=ml"]}},
        ),
    ] = (),
    created_after: Annotated[
        Time | None, Query(description="Only jobs that were submitted at this time or later.")
    ] = None,
    created_before: Annotated[
        Time | None, Query(description="Only jobs that were submitted before this time.")
    ] = None,
) -> JobFilter:
    return JobFilter(state, method, name, _labels(label), created_after, created_before)


JobFilterDep = Annotated[JobFilter, Depends(_filter)]


def _labels(texts: Sequence[str]) -> Mapping[str, str]:
    """The labels that a job must have. Raises InvalidParameter."""
    labels: dict[str, str] = {}
    for number, text in enumerate(texts):
        try:
            name, value = read_label(text)
            if labels.setdefault(name, value) != value:
                raise ValueError(f"'{name}' has two values; no job has both")
        except ValueError as error:
            param = f"label.{number}"
            raise InvalidParameter(f"{param}: {error}", param=param) from error
    return labels

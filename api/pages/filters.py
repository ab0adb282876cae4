"""Which jobs the list has: the API's filters, and days in place of moments."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated

from fastapi import Depends, Query

from api.routes.job_filters import JobFilterDep
from service.store.listing import JobFilter


def _filter(
    wanted: JobFilterDep,
    since: Annotated[date | None, Query(alias="from")] = None,
    until: Annotated[date | None, Query(alias="to")] = None,
) -> JobFilter:
    """The API's filter; `from` and `to` are days in UTC, both included."""
    if since is not None:
        wanted = replace(wanted, created_after=_midnight(since))
    if until is not None and until < date.max:
        wanted = replace(wanted, created_before=_midnight(until) + timedelta(days=1))
    return wanted


PageFilterDep = Annotated[JobFilter, Depends(_filter)]


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)

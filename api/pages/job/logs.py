"""A part of a log on the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Query

from api.log_feed import shown
from api.routes.logs import MAX_ATTEMPT, MAX_OFFSET
from service.domain.job import Job
from service.errors import EigenpressError
from service.logs.attempt_logs import DRIVER, AttemptLogs, LogPage

Source = Annotated[str, Query(pattern=r"^(driver|worker-(0|[1-9][0-9]{0,4}))$")]

LOG_BYTES = 2**15
"""Shown at a time."""


@dataclass(frozen=True)
class WantedLog:
    """Which log, and which part of it: its end unless an offset is given."""

    attempt: int | None
    source: str
    before: int | None
    after: int | None


def _wanted(
    attempt: Annotated[int | None, Query(ge=1, le=MAX_ATTEMPT)] = None,
    source: Source = DRIVER,
    before: Annotated[int | None, Query(ge=0, le=MAX_OFFSET)] = None,
    after: Annotated[int | None, Query(ge=0, le=MAX_OFFSET)] = None,
) -> WantedLog:
    return WantedLog(attempt, source, before, after)


LogDep = Annotated[WantedLog, Depends(_wanted)]


def log_values(job: Job, wanted: WantedLog, logs: AttemptLogs) -> dict[str, Any]:
    """For `job_log.html`."""
    attempt = wanted.attempt or job.attempt
    ends = wanted.before is None and wanted.after is None
    values: dict[str, Any] = {
        "attempt": attempt,
        "source": wanted.source,
        "ends": ends,
        "shown": shown,
    }
    if not attempt:
        return values | {"log": None, "problem": None, "sources": []}
    try:
        log = _read(job, attempt, wanted, logs)
    except EigenpressError as error:  # the rest of the page has nothing to do with it
        return values | {"log": None, "problem": error, "sources": [wanted.source]}
    return values | {"log": log, "problem": None, "sources": log.sources or (wanted.source,)}


def _read(job: Job, attempt: int, wanted: WantedLog, logs: AttemptLogs) -> LogPage:
    if wanted.after is not None:
        return logs.page(job, attempt, wanted.source, wanted.after, LOG_BYTES)
    return logs.last(job, attempt, wanted.source, LOG_BYTES, wanted.before)

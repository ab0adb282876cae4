"""The attempts of a job with their steps, as its events tell them. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from api.schemas.jobs import Job, StepProgress
from service.domain.job import Event, EventType
from service.domain.spec.job import JobSpec
from service.domain.states import IN_FLIGHT, Step

OUTCOMES: Mapping[str, str] = {
    EventType.SUCCEEDED: "succeeded",
    EventType.FAILED: "failed",
    EventType.RETRIED: "failed",
    EventType.RELEASED: "could not start",
    EventType.CANCELLED: "cancelled",
}
"""The events that end an attempt, in a word."""

NOTES = frozenset(
    {
        "attempt.resumed",
        "attempt.taken_over",
        "checkpoint.refused",
        "checkpoint.skipped",
        "workers.waiting",
        "workers.placed",
    }
)
"""The events of an attempt that its timeline repeats."""

LEAST_SHARE = 0.004
"""Of the width of a timeline: a shorter bar could not be seen."""


@dataclass(frozen=True)
class Bar:
    """When a step ran, as shares of the attempt's time."""

    start: float
    length: float


@dataclass(frozen=True)
class ShownStep:
    """One step of an attempt."""

    step: str
    done: int | None
    """None if that is not known: the attempt ended in the middle of the step."""
    total: int
    unit: str
    started_at: datetime
    finished_at: datetime | None
    bar: Bar
    seconds_left: float | None = None
    """Of a step under way, as far as that is known."""

    @property
    def seconds(self) -> float | None:
        """How long it took; None if it did not finish."""
        if self.finished_at is None:
            return None
        return (self.finished_at - self.started_at).total_seconds()


@dataclass(frozen=True)
class Attempt:
    """One attempt."""

    number: int
    began_at: datetime
    ended_at: datetime | None
    outcome: str
    """In a word: how it ended, or that it runs."""
    code: str | None
    """Of the error that ended it."""
    reason: str
    """Why it ended, if by an error."""
    pause_seconds: float | None
    """From its end to the earliest moment of the next attempt."""
    notes: tuple[str, ...]
    steps: tuple[ShownStep, ...]
    to_come: tuple[tuple[str, float | None], ...]
    """While it runs, the steps that have not begun, and their seconds as far as they are known."""

    @property
    def seconds(self) -> float | None:
        return None if self.ended_at is None else (self.ended_at - self.began_at).total_seconds()


@dataclass
class _Told:
    """What the events have told of an attempt so far."""

    number: int
    began_at: datetime
    end: Event | None = None
    notes: list[str] = field(default_factory=list)
    started: dict[str, Event] = field(default_factory=dict)
    finished: dict[str, Event] = field(default_factory=dict)


def timeline(job: Job, events: Iterable[Event], now: datetime) -> tuple[Attempt, ...]:
    """The attempts, the latest first. `events` are the job's, the earliest first.

    Of an attempt that runs, the job itself says how far its steps are. If the first events are
    missing, so are the attempts that they began.
    """
    attempts = [_attempt(each, job, now) for each in _told(events)]
    return tuple(reversed(attempts))


def _told(events: Iterable[Event]) -> Iterator[_Told]:
    told: _Told | None = None
    for event in events:
        if event.type == EventType.CLAIMED:
            if told is not None:
                yield told
            told = _Told(event.attempt or 1, event.at)
        elif told is not None and told.end is None:
            _tell(told, event)
    if told is not None:
        yield told


def _tell(told: _Told, event: Event) -> None:
    step = str(event.data.get("step"))
    if event.type in OUTCOMES:
        told.end = event
    elif event.type in NOTES:
        told.notes.append(event.message)
    elif event.type == EventType.STEP_STARTED:
        told.started[step] = event
    elif event.type == EventType.STEP_FINISHED:
        told.finished[step] = event


def _attempt(told: _Told, job: Job, now: datetime) -> Attempt:
    end = told.end
    runs = end is None and job.state in IN_FLIGHT and told.number == job.attempt
    until = now if end is None else end.at
    if runs:
        steps = [_current(step, told, until) for step in job.steps]
    else:
        steps = [_past(name, told, until) for name in told.started]
    begun = {each.step for each in steps}
    data: Mapping[str, Any] = {} if end is None else end.data
    return Attempt(
        number=told.number,
        began_at=told.began_at,
        ended_at=None if end is None else end.at,
        outcome=job.state if end is None else OUTCOMES[end.type],
        code=data.get("code"),
        reason=end.message if end is not None and "code" in data else "",
        pause_seconds=data.get("after_seconds"),
        notes=tuple(dict.fromkeys(told.notes)),
        steps=tuple(steps),
        to_come=tuple(_to_come(job, begun)) if runs else (),
    )


def _to_come(job: Job, begun: Collection[str]) -> Iterator[tuple[str, float | None]]:
    known = job.time_left.to_come if job.time_left else ()
    seconds = {each.step: each.seconds for each in known}
    steps = job.spec.steps if isinstance(job.spec, JobSpec) else tuple(Step)
    return ((each, seconds.get(each)) for each in steps if each not in begun)


def _current(step: StepProgress, told: _Told, until: datetime) -> ShownStep:
    return ShownStep(
        step.step,
        step.done,
        step.total,
        step.unit,
        step.started_at,
        step.finished_at,
        _bar(told.began_at, step.started_at, step.finished_at or until, until),
        step.seconds_left,
    )


def _past(name: str, told: _Told, until: datetime) -> ShownStep:
    started, finished = told.started[name], told.finished.get(name)
    total = int(started.data.get("total") or 0)
    return ShownStep(
        name,
        None if finished is None else total,
        total,
        str(started.data.get("unit") or ""),
        started.at,
        None if finished is None else finished.at,
        _bar(told.began_at, started.at, finished.at if finished else until, until),
    )


def _bar(began: datetime, start: datetime, end: datetime, until: datetime) -> Bar:
    whole = max((until - began).total_seconds(), 1e-3)
    place = max((start - began).total_seconds() / whole, 0.0)
    place = round(min(place, 1 - LEAST_SHARE), 4)
    length = max((end - start).total_seconds() / whole, LEAST_SHARE)
    return Bar(place, round(min(length, 1 - place), 4))


def current_step(job: Job) -> StepProgress | None:
    """The step under way; None if none is."""
    unfinished: Sequence[StepProgress] = [each for each in job.steps if each.finished_at is None]
    return unfinished[-1] if job.state in IN_FLIGHT and unfinished else None

"""How long a running job still takes: what was predicted, corrected by what was measured since.

Pure functions. The steps of this attempt say how fast it is: those that have ended, and the running
one as far as it has come. They count for the steps to come as well, the less the smaller they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from service.domain.job import Job, StepProgress
from service.domain.prediction import Prediction
from service.domain.states import TERMINAL, JobState, Step

PRIOR_OF_JOB = 0.1
"""The prediction of a whole job weighs as much as so much of it that has been measured."""

PRIOR_OF_STEP = 0.2
"""The same of one step."""

MOST_OF_STEP = 0.95
"""A step that has not ended has not come further, however long it has taken."""

NOT_MEASURED = frozenset({Step.RESOLVE})
"""Downloads and starts say nothing of the speed of the others."""

WAITS = {
    JobState.QUEUED: "The job waits.",
    JobState.CANCELLING: "The job is being cancelled.",
}
NOT_PREDICTED = "It is predicted once the workers have read the model and the texts."
OTHER_VERSION = "The attempt runs in a version of the service that predicts in another way."


@dataclass(frozen=True)
class TimeLeft:
    """The seconds left of each step that has not ended, and the reason where any is not known."""

    steps: Mapping[Step, float | None]
    reason: str | None = None

    @property
    def seconds(self) -> float | None:
        """Of the job; None if that is not known."""
        known = [each for each in self.steps.values() if each is not None]
        return sum(known) if known and len(known) == len(self.steps) else None


@dataclass(frozen=True)
class _Measured:
    """The seconds that a step has taken in this attempt, and should have."""

    taken: float
    predicted: float


def time_left(job: Job) -> TimeLeft | None:
    """What is left of a job, as it stood when it was read; None once it has ended."""
    if job.state in TERMINAL:
        return None
    if reason := WAITS.get(job.state):
        return TimeLeft({}, reason)
    if job.prediction is None or job.read_at is None:
        resolved = any(each.step is Step.RESOLVE and each.finished_at for each in job.steps)
        return TimeLeft({}, OTHER_VERSION if resolved else NOT_PREDICTED)
    return _left(job.prediction, job.steps, job.read_at)


def _left(prediction: Prediction, steps: Sequence[StepProgress], now: datetime) -> TimeLeft:
    begun = {each.step: each for each in steps}
    ended = [_ended(prediction, each) for each in steps if each.finished_at is not None]
    pace = _pace(prediction, ended)
    running = {
        each.step: _running(prediction, each, now, pace)
        for each in steps
        if each.finished_at is None and prediction.seconds.get(each.step)
    }
    pace = _pace(prediction, [*ended, *(each for _, each in running.values())])
    left: dict[Step, float | None] = {}
    for step, seconds in prediction.seconds.items():
        if step in begun and begun[step].finished_at is not None:
            continue
        if seconds is None:
            left[step] = None
        elif step in running:
            share, measured = running[step]
            left[step] = (1 - share) * seconds * _ratio([measured], PRIOR_OF_STEP * seconds, pace)
        else:
            left[step] = (1 - _resumed(prediction, step)) * seconds * pace
    return TimeLeft(left, prediction.unknown if None in left.values() else None)


def _pace(prediction: Prediction, measured: Sequence[_Measured | None]) -> float:
    """How much longer the steps of this attempt take than was predicted."""
    whole = sum(each for each in prediction.seconds.values() if each is not None)
    return _ratio([each for each in measured if each is not None], PRIOR_OF_JOB * whole, 1.0)


def _ratio(measured: Sequence[_Measured], weight: float, prior: float) -> float:
    """What was measured by what was predicted, and what is thought without that."""
    taken = sum(each.taken for each in measured) + weight * prior
    predicted = sum(each.predicted for each in measured) + weight
    return taken / predicted if predicted else prior


def _ended(prediction: Prediction, step: StepProgress) -> _Measured | None:
    seconds = prediction.seconds.get(step.step)
    if seconds is None or step.finished_at is None or step.step in NOT_MEASURED:
        return None
    taken = (step.finished_at - step.started_at).total_seconds()
    return _Measured(taken, seconds * (1 - _resumed(prediction, step.step)))


def _running(
    prediction: Prediction, step: StepProgress, now: datetime, pace: float
) -> tuple[float, _Measured]:
    """The share of its time that a step has passed, and what was measured of it.

    Its units bound the share: each worker may be anywhere within the next one.
    """
    seconds, taken = prediction.seconds[step.step] or 0.0, (now - step.started_at).total_seconds()
    begun = _resumed(prediction, step.step)
    furthest = min(1.0, (step.done + prediction.placement.workers) / step.total)
    least, most = (
        prediction.share_of_time(step.step, units) for units in (step.done / step.total, furthest)
    )
    if furthest == 1:
        most = 1.0
    expected = begun + max(0.0, taken) / (seconds * pace)
    share = min(max(expected, least), max(most, least), max(MOST_OF_STEP, least))
    return share, _Measured(max(0.0, taken), seconds * max(0.0, share - begun))


def _resumed(prediction: Prediction, step: Step) -> float:
    """The share of a step's time that earlier attempts have spared this one."""
    return prediction.share_of_time(step, prediction.resumed.get(step, 0.0))

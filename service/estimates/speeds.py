"""How fast this installation is: what its jobs took, beside what the cost model says of them.

Pure functions. The cost model knows one kind of machine; the ratio of what was measured to what it
predicts corrects it for another. Starts and imports are in what is measured, so a job much smaller
than the one to be estimated says nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.domain.states import Step

COMPARABLE = 100
"""A job counts unless it should take less than the estimated one by more than this factor."""

PARTS: tuple[frozenset[Step], ...] = (
    frozenset({Step.CALIBRATE, Step.SOLVE}),  # most groups are solved while others are calibrated
    *(frozenset({step}) for step in Step if step not in (Step.CALIBRATE, Step.SOLVE)),
)
"""Steps that are corrected together."""

Seconds = Mapping[Step, float]


@dataclass(frozen=True)
class Measured:
    """A job that has succeeded: what the cost model says of its steps, and what they took."""

    predicted: Seconds
    taken: Seconds


def comparable(predicted: Seconds, jobs: Sequence[Measured]) -> list[Measured]:
    """The jobs that say something of one whose steps are predicted like this."""
    least = sum(predicted.values()) / COMPARABLE
    return [job for job in jobs if sum(job.predicted.values()) >= least]


def corrected(predicted: Seconds, jobs: Sequence[Measured]) -> dict[Step, float]:
    """The seconds of each step by these jobs; as predicted where none of them says anything."""
    ratios = {step: ratio for part in PARTS for step, ratio in _ratios(part, jobs)}
    return {step: seconds * ratios[step] for step, seconds in predicted.items()}


def _ratios(part: frozenset[Step], jobs: Sequence[Measured]) -> list[tuple[Step, float]]:
    having = [job for job in jobs if part <= job.taken.keys() & job.predicted.keys()]
    said = sum(job.predicted[step] for job in having for step in part)
    took = sum(job.taken[step] for job in having for step in part)
    return [(step, took / said if said else 1.0) for step in part]

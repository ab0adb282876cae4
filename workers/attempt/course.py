"""How a recovery goes on: which steps there are, and what its checks decide. Pure functions.

Some sequences of the calibration's text are kept aside. The divergence on them decides which
factors are kept, and whether steps get smaller; so no step size ends in a worse model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from service.domain.recovery_plan import batches_to_train, steps_between_checks

WORSE = 1.02
"""By this factor the divergence may exceed the best one without the steps being made smaller."""

SMALLER = 0.5
"""What the step size is multiplied by when they are."""


@dataclass(frozen=True)
class Batches:
    """The sequences that are trained on, in batches of equal size, and those kept aside."""

    training: tuple[Sequence[Sequence[int]], ...]
    aside: Sequence[Sequence[int]]

    @classmethod
    def of(cls, sequences: Sequence[Sequence[int]], size: int, seed: int) -> Batches:
        """The last of the sequences are kept aside; there must be two batches at least."""
        batches = batches_to_train(len(sequences), size)
        trained = list(sequences[: batches * size])
        random.Random(seed).shuffle(trained)  # noqa: S311
        return cls(
            tuple(trained[n * size : (n + 1) * size] for n in range(batches)),
            sequences[batches * size :],
        )

    def shares(self, number: int, of: int) -> list[Sequence[Sequence[int]]]:
        """One worker's part of every batch, that of the sequences aside last."""
        return [batch[number::of] for batch in (*self.training, self.aside)]

    def order(self, epoch: int, seed: int) -> list[int]:
        """The batches in the order of an epoch."""
        numbers = list(range(len(self.training)))
        random.Random(f"{seed} {epoch}").shuffle(numbers)  # noqa: S311
        return numbers


class Verdict(Enum):
    """What a check decides."""

    KEEP = "keep"
    """The factors are the best so far."""

    GO_ON = "go on"
    """They are about as good as the best."""

    GO_BACK = "go back"
    """They are worse: training goes on from the best, with smaller steps."""


@dataclass
class Course:
    """How far the recovery of one target has come."""

    steps: int  # of the whole recovery
    step: int = 0  # how many are taken
    factor: float = 1.0  # of the step size
    checks: list[tuple[int, float]] = field(default_factory=list)
    """After how many steps, and the divergence per token aside in nats."""

    @property
    def best(self) -> tuple[int, float]:
        """The check with the least divergence, the first one of equals."""
        return min(self.checks, key=lambda check: check[1])

    @property
    def pause(self) -> int:
        """How many steps are taken before the next check."""
        return min(steps_between_checks(self.steps), self.steps - self.step)

    def check(self, divergence: float) -> Verdict:
        """Note the divergence after the steps so far; the first check is of the cut model."""
        first = not self.checks
        least = math.inf if first else self.best[1]
        self.checks.append((self.step, divergence if math.isfinite(divergence) else math.inf))
        if first or divergence < least:
            return Verdict.KEEP
        if divergence <= WORSE * least:
            return Verdict.GO_ON
        self.factor *= SMALLER
        return Verdict.GO_BACK

    def as_data(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "steps": self.steps,
            "step": self.step,
            "factor": self.factor,
            "checks": [[step, each if math.isfinite(each) else None] for step, each in self.checks],
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Course:
        """The inverse of `as_data`."""
        checks = [(step, math.inf if each is None else each) for step, each in data["checks"]]
        return cls(data["steps"], data["step"], data["factor"], checks)


@dataclass(frozen=True)
class RecoveredTarget:
    """What the recovery of a target came to; it took this attempt so many seconds."""

    course: Course
    seconds: float

    @property
    def gained(self) -> bool:
        return self.course.best[0] > 0

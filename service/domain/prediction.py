"""What the driver of an attempt predicts of its steps, once it has its workers and its model.

It is the data of an event, from which the seconds that are left are read at any time, and by which
later estimates know how far off the cost model is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from service.domain.placement import Placement
from service.domain.states import Step

PREDICTED = "steps.predicted"
"""The event of an attempt that has predicted its steps."""

Curve = tuple[tuple[float, float], ...]
"""How much of a step's time has passed once a share of its units is done, by points between (0, 0)
and (1, 1), which are left out. At a share of 1 some of the time may be left."""


@dataclass(frozen=True)
class Prediction:
    """The steps of an attempt, and the seconds of each as if none were resumed."""

    placement: Placement
    version: str
    """Of the service, whose cost model it is."""
    modelled: Mapping[Step, float] = field(default_factory=dict)
    """By the cost model alone."""
    seconds: Mapping[Step, float | None] = field(default_factory=dict)
    """By the cost model and the jobs of this installation; None if that is not known."""
    resumed: Mapping[Step, float] = field(default_factory=dict)
    """The share of a step's units that earlier attempts have done."""
    curves: Mapping[Step, Curve] = field(default_factory=dict)
    """Of steps whose units take unequal times."""
    unknown: str | None = None
    """Why some seconds are not known."""

    def share_of_time(self, step: Step, units: float) -> float:
        """How much of a step's time has passed when this share of its units is done."""
        ends = (0.0, 0.0), (1.0, 1.0)
        points = sorted({*self.curves.get(step, ()), *ends})
        for (before, least), (after, most) in pairwise(points):
            if units <= after:
                share = (units - before) / (after - before) if after > before else 0.0
                return least + share * (most - least)
        return 1.0

    def as_data(self) -> dict[str, Any]:
        """As the data of an event."""
        return asdict(self)


def prediction_of(data: Mapping[str, Any]) -> Prediction | None:
    """The prediction in an event; None if another version wrote it in another form."""
    try:
        return Prediction(
            Placement(**data["placement"]),
            str(data["version"]),
            {Step(step): float(each) for step, each in data["modelled"].items()},
            {
                Step(step): None if each is None else float(each)
                for step, each in data["seconds"].items()
            },
            {Step(step): float(each) for step, each in data["resumed"].items()},
            {
                Step(step): tuple((float(units), float(time)) for units, time in curve)
                for step, curve in data["curves"].items()
            },
            data["unknown"],
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None

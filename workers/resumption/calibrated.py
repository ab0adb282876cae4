"""The progress of a calibration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from workers.resumption.checkpoints import Refusal
from workers.sweeps.passes import Pass


@dataclass
class Calibrated:
    """How far a worker has come with its share, and the checkpoints that it refused."""

    passes: list[Pass]  # that remain
    all_passes: int
    completing: Mapping[str, Pass]  # by group: the pass that completes its statistics
    losses: list[float] = field(default_factory=list)  # of every batch, in nats, once known
    refused: list[Refusal] = field(default_factory=list)

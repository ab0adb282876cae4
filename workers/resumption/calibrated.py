"""The progress of a calibration."""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.resumption.checkpoints import Refusal


@dataclass
class Calibrated:
    """The progress of a worker with its share, and the checkpoints that it refused."""

    sequences: int = 0
    losses: list[float] = field(default_factory=list)  # of every batch, summed, in nats
    refused: list[Refusal] = field(default_factory=list)

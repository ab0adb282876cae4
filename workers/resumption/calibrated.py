"""How far the calibration of an earlier attempt has come."""

from __future__ import annotations

from dataclasses import dataclass, field

from workers.resumption.checkpoints import Refusal


@dataclass
class Calibrated:
    """How far a worker has come with its share."""

    sequences: int = 0
    losses: list[float] = field(default_factory=list)  # of every batch, summed, in nats
    refused: list[Refusal] = field(default_factory=list)

"""The text that a job learns from: by calibrating, and by training after the cut."""

from __future__ import annotations

import math

from pydantic import Field

from service.domain.spec.fields import Body
from service.domain.spec.sources import DataSource

MAX_SEQUENCES = 1_000_000
MAX_SEQUENCE_LENGTH = 131_072

RECOVERY_SEQUENCES = 2.5
"""A recovery trains on so many times the sequences of the calibration, unless the job says more.
At 60 % of the parameters it then takes about three times the calibration's time."""


class Calibration(Body):
    """The text on which activations and gradients are measured."""

    data: DataSource
    sequences: int = Field(default=128, ge=1, le=MAX_SEQUENCES)
    sequence_length: int = Field(default=512, ge=8, le=MAX_SEQUENCE_LENGTH, description="Tokens.")
    batch_size: int = Field(default=8, ge=1, le=4096, description="Sequences per forward pass.")
    held_out_fraction: float = Field(
        default=0.1, gt=0.0, lt=1.0, description="Share of the documents kept for evaluation."
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1)


class Recovery(Body):
    """Training of compressed layers towards the dense model's predictions.

    Of layers of low rank all numbers are trained, of layers in few bits the scales. It uses the
    calibration's text and needs no labels. Some of the sequences are kept aside: what predicts
    these best is kept, so that training never makes a model worse on them.
    """

    sequences: int | None = Field(
        default=None,
        ge=2,
        le=MAX_SEQUENCES,
        description="Sequences to train on, those kept aside included. Unset: "
        f"{RECOVERY_SEQUENCES} times as many as of the calibration, which come first.",
    )
    epochs: int = Field(
        default=1,
        ge=1,
        le=64,
        description="How often each sequence is trained on. More text is better than more epochs.",
    )
    batch_size: int = Field(default=4, ge=1, le=4096, description="Sequences per step.")
    step_size: float = Field(
        default=1.0,
        gt=0.0,
        le=100.0,
        description="Relative to the usual one. Steps get smaller where they make the model worse.",
    )

    @property
    def least(self) -> int:
        """How many sequences it needs: two batches, one of them to be kept aside."""
        return 2 * self.batch_size

    def asked(self, calibration: Calibration) -> int:
        """How many sequences it asks for."""
        return self.sequences or math.ceil(RECOVERY_SEQUENCES * calibration.sequences)

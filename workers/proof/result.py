"""What a proof measures: plain data, which the driver reads without torch."""

from __future__ import annotations

from dataclasses import dataclass

SEQUENCES = 2
"""How many of the calibration sequences an artifact and the model in memory both read."""


@dataclass(frozen=True)
class Proof:
    """How an artifact compares with the compressed model in memory."""

    logit_error: float  # ‖a − m‖ / ‖m‖ over the compared logits
    same_predictions: float  # share of positions with the same most likely token
    positions: int  # in all sequences together

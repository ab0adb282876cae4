"""The measurements of an attempt, kept so that a later one measures only the missing ones.

It keeps losses and scores exactly: JSON carries every float64 without loss, infinities included.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from service.errors import EigenpressError
from workers.compression.candidates import Forms
from workers.evaluation.estimates import Estimate
from workers.evaluation.losses import SequenceLoss, TextLoss
from workers.evaluation.scores import Scores
from workers.resumption.checkpoints import Checkpoints, Refusal
from workers.resumption.write_throttle import WriteThrottle

FLUSH_SECONDS = 2.0
"""The shortest time between two segments, and about what a lost attempt loses of its work."""

CALIBRATION_LOSS = "calibration/loss"
"""The key of the calibration's mean loss, which is known once the calibration is complete."""

log = logging.getLogger("eigenpress.checkpoints")

Measured = TextLoss | Scores | float | tuple[str, ...]
"""The loss on text, the scores on a task, tokens per second, or what a model has written."""


class Journal:
    """Results by key. Entries are added in segments, none of which is ever changed."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._prefix = f"{checkpoints.place.prefix}journal/"
        self._entries: dict[str, Measured] = {}
        self._unwritten: dict[str, Any] = {}
        self._segments = 0
        self._throttle = WriteThrottle(1, least_seconds=FLUSH_SECONDS)

    def __len__(self) -> int:
        return len(self._entries)

    def restore(self) -> list[Refusal]:
        """Read the segments of other attempts; return the damaged ones."""
        refused = []
        for segment in self._checkpoints.sealed("journal"):
            if isinstance(segment, Refusal):
                refused.append(segment)
            else:
                _, entries = segment
                self._entries |= {key: _decoded(entry) for key, entry in entries.items()}
        return refused

    def remove(self, refused: Sequence[Refusal]) -> None:
        """Remove damaged segments, so that they are refused only once."""
        keys = [refusal.key for refusal in refused if refusal.key.startswith(self._prefix)]
        self._checkpoints.remove(keys)

    def get(self, key: str) -> Any:
        """The result under this key; None if there is none."""
        return self._entries.get(key)

    def put(self, key: str, measured: Measured) -> None:
        """Record a result; it is written with the next segment."""
        self._entries[key] = measured
        self._unwritten[key] = _encoded(measured)
        self._throttle.worked(1)
        if self._throttle.due:
            self.flush()

    def flush(self) -> None:
        """Write the new results; if that fails, the next flush tries again."""
        if not self._unwritten:
            return
        name = f"{self._prefix}{self._checkpoints.place.attempt}-{self._segments:06d}"
        with self._throttle.writing():
            try:
                self._checkpoints.put_sealed(name, self._unwritten)
            except EigenpressError as error:
                log.warning("measurements were not written: %s", error)
            else:
                self._segments += 1
                self._unwritten = {}


def forms_key(forms: Forms) -> str:
    """A name for the model with layers in these forms."""
    text = json.dumps(dict(forms), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _encoded(measured: Measured) -> Any:
    if isinstance(measured, TextLoss):
        each = [[s.negative_log_likelihood, s.tokens, s.correct] for s in measured.each]
        return {"kind": "loss", "each": each}
    if isinstance(measured, Scores):
        return {
            "kind": "scores",
            "problems": measured.problems,
            "each": {metric: list(values) for metric, values in measured.each.items()},
            "summaries": {
                metric: [estimate.value, estimate.standard_error]
                for metric, estimate in measured.summaries.items()
            },
        }
    if isinstance(measured, tuple):
        return {"kind": "texts", "each": list(measured)}
    return {"kind": "number", "value": measured}


def _decoded(entry: Mapping[str, Any]) -> Measured:
    match entry["kind"]:
        case "loss":
            return TextLoss(tuple(SequenceLoss(*values) for values in entry["each"]))
        case "scores":
            return Scores(
                entry["problems"],
                {metric: tuple(values) for metric, values in entry["each"].items()},
                {metric: Estimate(*values) for metric, values in entry["summaries"].items()},
            )
        case "texts":
            return tuple(entry["each"])
        case _:
            return float(entry["value"])

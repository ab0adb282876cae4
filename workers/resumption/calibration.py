"""Checkpoints during calibration: one worker's sweep at a boundary between two blocks.

A checkpoint holds what goes through the sweep there: the gradient of the hidden state of every
batch, and the losses; or the hidden states, if no gradients are observed. It is exact, so a resumed
calibration gives the same result as an uninterrupted one. Statistics are in no checkpoint: a block
that is solved has none, and those of a block that is not are computed again. So some checkpoints
are kept: the blocks that the last ones have left behind may not be solved yet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from safetensors.torch import load
from torch import Tensor

from workers.resumption.checkpoints import Checkpoints, Manifest, Refusal, Refused
from workers.resumption.tensors import tensor_bytes
from workers.resumption.write_throttle import ASSUMED_BYTES_PER_SECOND, WriteThrottle

KEPT = 4
"""A block is solved while its workers go through the next two, and a group is written after it."""

KEY = "state"


@dataclass(frozen=True)
class Reached:
    """A boundary that an earlier attempt has reached, and the state of every batch there."""

    boundary: int
    losses: list[float]
    states: list[Tensor]


class CalibrationCheckpoints:
    """Writes and reads the checkpoints of one worker's sweep."""

    def __init__(
        self, checkpoints: Checkpoints, worker: int, every: int, share_of_time: float
    ) -> None:
        """Write after at least `every` passes, using at most `share_of_time` for writing."""
        self._checkpoints = checkpoints
        self._name = f"calibration/{worker}"
        self._every = every
        self._share_of_time = share_of_time
        self._throttle: WriteThrottle | None = None
        self._written: deque[Manifest] = deque(maxlen=KEPT - 1)
        self.trouble: str | None = None
        """Why the last write failed; None if it succeeded."""

    def restore(
        self, remaining: Callable[[int], int | None]
    ) -> tuple[Reached | None, list[Refusal]]:
        """The intact checkpoint that leaves the fewest passes, and the damaged ones.

        `remaining` is the number of passes from a boundary; None if one cannot go on there.
        """
        found, refused = self._checkpoints.find(self._name)
        usable = [
            (count, manifest)
            for manifest in found
            if (count := remaining(manifest.content["boundary"])) is not None
        ]
        for _, manifest in sorted(usable, key=lambda each: each[0]):
            try:
                reached = self._read(manifest)
            except Refused as error:
                refused.append(error.refusal)
            else:
                self._written.append(manifest)
                return reached, refused
        return None, refused

    def add(
        self, boundary: int, losses: list[float], batches: int, state: Callable[[int], Tensor]
    ) -> None:
        """Record that a boundary is reached; write the batches' states if that is due."""
        if self._throttle is None:
            expected = batches * state(0).nbytes / ASSUMED_BYTES_PER_SECOND
            self._throttle = WriteThrottle(self._every, expected, share_of_time=self._share_of_time)
        self._throttle.worked(1)
        if self._throttle.due:
            with self._throttle.writing():
                files = {
                    f"{index:05d}.safetensors": partial(_saved, state, index)
                    for index in range(batches)
                }
                self._write(files, boundary, losses)

    def _write(
        self, files: Mapping[str, Callable[[], bytes]], boundary: int, losses: list[float]
    ) -> None:
        content = {"boundary": boundary, "losses": losses}
        written = self._checkpoints.replace(self._name, files, content, also_kept=self._written)
        if isinstance(written, str):
            self.trouble = written
        else:
            self.trouble = None
            self._written.append(written)

    def _read(self, manifest: Manifest) -> Reached:
        states: dict[str, Tensor] = {}

        def use(file: str, data: bytes) -> None:
            states[file] = load(data)[KEY].clone()

        self._checkpoints.read(manifest, use)
        content = manifest.content
        return Reached(
            content["boundary"], list(content["losses"]), [states[name] for name in sorted(states)]
        )


def _saved(state: Callable[[int], Tensor], index: int) -> bytes:
    return tensor_bytes({KEY: state(index).contiguous()})

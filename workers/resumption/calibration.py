"""Checkpoints during calibration: one worker's statistics of every group, and its losses.

Statistics are written in the precision of their sums, so a resumed calibration gives the same
result as an uninterrupted one. A file holds one group and is written and read by itself, so the
memory for a few groups suffices beside the statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from safetensors.torch import load

from workers.compression.state import clear_statistics, load_statistics, statistics_tensors
from workers.compression.statistics import GroupStatistics
from workers.resumption.calibrated import Calibrated
from workers.resumption.checkpoints import Checkpoints, Refused
from workers.resumption.tensors import tensor_bytes
from workers.resumption.write_throttle import WriteThrottle

ASSUMED_BYTES_PER_SECOND = 100e6
"""The assumed speed of the bucket before the first write."""


class CalibrationCheckpoints:
    """Writes and reads the checkpoints of one worker's statistics."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        worker: int,
        statistics: Mapping[str, GroupStatistics],
        every: int,
        share_of_time: float,
    ) -> None:
        """Write after at least `every` sequences, using at most `share_of_time` for writing."""
        self._checkpoints = checkpoints
        self._name = f"calibration/{worker}"
        self._statistics = statistics
        self._files = {f"{number:05d}.safetensors": name for number, name in enumerate(statistics)}
        self._done = Calibrated()
        size = sum(
            tensor.nbytes
            for group in statistics.values()
            for tensor in statistics_tensors(group).values()
        )
        self._throttle = WriteThrottle(
            every, size / ASSUMED_BYTES_PER_SECOND, share_of_time=share_of_time
        )
        self.trouble: str | None = None
        """Why the last write failed; None if it succeeded."""

    def restore(self) -> Calibrated:
        """Fill the statistics from the intact checkpoint with the most sequences, if any."""
        found, refused = self._checkpoints.find(self._name)
        self._done = Calibrated(refused=refused)
        for manifest in sorted(found, key=lambda each: -int(each.content["sequences"])):
            try:
                self._checkpoints.read(manifest, self._load)
            except Refused as error:
                refused.append(error.refusal)
                for group in self._statistics.values():
                    clear_statistics(group)
            else:
                content = manifest.content
                self._done = Calibrated(content["sequences"], list(content["losses"]), refused)
                break
        return self._done

    def add(self, sequences: int, loss: float) -> None:
        """Record a batch that was added to the statistics; write them if that is due."""
        self._done.sequences += sequences
        self._done.losses.append(loss)
        self._throttle.worked(sequences)
        if self._throttle.due:
            with self._throttle.writing():
                self._try_to_write()

    def _try_to_write(self) -> None:
        files = {file: partial(self._saved, group) for file, group in self._files.items()}
        content = {"sequences": self._done.sequences, "losses": self._done.losses}
        self.trouble = self._checkpoints.replace(self._name, files, content)

    def _saved(self, group: str) -> bytes:
        return tensor_bytes(statistics_tensors(self._statistics[group]))

    def _load(self, file: str, data: bytes) -> None:
        load_statistics(self._statistics[self._files[file]], load(data))

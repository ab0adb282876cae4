"""Checkpoints of a calibration under way: one worker's statistics of every group, and its losses.

Statistics are kept in the precision that they are summed in, so calibration goes on as if it had
never stopped. A file holds one group and is made and read by itself: beside the statistics
themselves there is memory for a few groups.
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
from workers.resumption.write_throttle import Rhythm

ASSUMED_BYTES_PER_SECOND = 100e6
"""Of the bucket, before anything has been written to it."""


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
        """`every` so many sequences, at most, and using no more than this share of the time."""
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
        self._rhythm = Rhythm(every, size / ASSUMED_BYTES_PER_SECOND, share_of_time=share_of_time)
        self.trouble: str | None = None
        """Why the last writing failed."""

    def restore(self) -> Calibrated:
        """Fill the statistics from the checkpoint that has most sequences, if any is whole."""
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
        """Note a batch that the statistics now hold; write them where it is time to."""
        self._done.sequences += sequences
        self._done.losses.append(loss)
        self._rhythm.worked(sequences)
        if self._rhythm.due:
            with self._rhythm.writing():
                self._try_to_write()

    def _try_to_write(self) -> None:
        files = {file: partial(self._saved, group) for file, group in self._files.items()}
        content = {"sequences": self._done.sequences, "losses": self._done.losses}
        self.trouble = self._checkpoints.replace(self._name, files, content)

    def _saved(self, group: str) -> bytes:
        return tensor_bytes(statistics_tensors(self._statistics[group]))

    def _load(self, file: str, data: bytes) -> None:
        load_statistics(self._statistics[self._files[file]], load(data))

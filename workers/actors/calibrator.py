"""A worker's part of the calibration: its sweep over its share of the sequences."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import psutil
import torch
from torch import Tensor

from service.settings import Settings
from workers.compression.shapes import InputGroup
from workers.compression.statistics import (
    GRADIENTS,
    GroupStatistics,
    Observations,
    accumulation_dtype,
)
from workers.model.blocks import StoredModel
from workers.resumption.calibrated import Calibrated
from workers.resumption.calibration import CalibrationCheckpoints
from workers.sweeps.boundaries import Boundaries, stride
from workers.sweeps.calibration import CalibrationSweep, Observed
from workers.sweeps.passes import Kind, Pass, Sweeps
from workers.text.sequences import in_batches

SHARE_OF_FREE_MEMORY = 0.5
"""The part of the free memory that hidden states may take, unless a setting says otherwise."""


class Calibrator:
    """See the module. Statistics of a block are held until they are handed over."""

    def __init__(
        self,
        stored: StoredModel,
        groups: Sequence[InputGroup],
        observations: Observations,
        *,
        mixed_precision: bool,
        settings: Settings,
        scratch: Path,
    ) -> None:
        self._stored = stored
        self._groups = tuple(groups)
        self._observations = observations
        self._mixed_precision = mixed_precision
        self._settings = settings
        self._scratch = scratch / "boundaries"
        self._statistics: dict[str, GroupStatistics] = {}
        self._sweep: CalibrationSweep | None = None
        self._batches: list[Tensor] = []
        self._losses: list[float] = []
        self._kept: CalibrationCheckpoints | None = None
        self._sweeps = Sweeps(len(stored.passage.blocks), bool(observations & GRADIENTS))

    def begin(
        self,
        sequences: Sequence[Sequence[int]],
        batch_size: int,
        solved: Collection[str],
        *,
        loss_known: bool,
        kept: CalibrationCheckpoints | None,
    ) -> Calibrated:
        """Take a share of the sequences; the passes that remain, after earlier attempts' ones.

        `solved` names groups without need of statistics. Raises the storage's errors, and
        BoundariesTooLarge.
        """
        unsolved = {self._block(group) for group in self._groups if group.name not in solved}

        def remaining(boundary: int) -> list[Pass]:
            return self._sweeps.remaining(unsolved, loss_known=loss_known, boundary=boundary)

        self._kept = kept
        reached, refused = (
            (None, [])
            if kept is None
            else kept.restore(
                lambda boundary: (
                    len(remaining(boundary)) if self._sweeps.usable(boundary, unsolved) else None
                )
            )
        )
        self._batches = [torch.tensor(each) for each in in_batches(sequences, batch_size)]
        wanted = tuple(group for group in self._groups if group.name not in solved)
        boundaries, keep_every = self._boundaries()
        self._sweep = CalibrationSweep(
            self._stored.passage,
            self._stored,
            Observed(self._observations, wanted, accumulation_dtype(self._stored.device)),
            self._batches,
            boundaries,
            keep_every=keep_every,
            mixed_precision=self._mixed_precision,
        )
        passes = self._sweeps.remaining(unsolved, loss_known=loss_known)
        if reached is not None:
            self._sweep.resume(reached.boundary, reached.states)
            self._losses = reached.losses
            passes = remaining(reached.boundary)
        completing = {group.name: self._sweeps.completing(self._block(group)) for group in wanted}
        return Calibrated(passes, len(self._sweeps.all), completing, self._losses, refused)

    def run(self, each: Pass) -> list[float]:
        """Make a pass; the summed loss of every batch, if it is the pass that computes it."""
        assert self._sweep is not None  # noqa: S101 - `begin` comes first
        match each.kind:
            case Kind.FORWARD:
                self._statistics |= self._sweep.forward(each.block)
            case Kind.BACKWARD:
                self._statistics |= self._sweep.backward(each.block)
            case Kind.LOSS:
                self._losses = self._sweep.loss()
        boundary = self._sweeps.reached(each)
        if boundary is not None and self._kept is not None:
            self._kept.add(
                boundary,
                self._losses,
                len(self._batches),
                lambda index: self._state(boundary, index),
            )
        return self._losses if each.kind is Kind.LOSS else []

    def hand_over(self, group: str) -> GroupStatistics:
        """This shard's statistics of a group, which are no longer held here."""
        return self._statistics.pop(group).to(torch.device("cpu"))

    def _state(self, boundary: int, index: int) -> Tensor:
        assert self._sweep is not None  # noqa: S101 - `begin` comes first
        return self._sweep.state(boundary, index)

    def _block(self, group: InputGroup) -> int:
        rest = group.name.removeprefix(f"{self._stored.passage.prefix}.")
        return int(rest.partition(".")[0])

    def _boundaries(self) -> tuple[Boundaries, int]:
        """The store of hidden states, and how many blocks apart they are kept."""
        device, blocks = self._stored.device, self._sweeps.blocks
        memory, files = self._memory_bytes(), self._file_bytes()
        tiers = {torch.device("cpu"): memory}
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            tiers = {device: int(free * SHARE_OF_FREE_MEMORY), **tiers}
        hidden = self._stored.model.config.get_text_config().hidden_size
        tokens = sum(batch.numel() for batch in self._batches)
        needed = tokens * hidden * self._stored.dtype.itemsize
        keep_every = stride(blocks, needed, sum(tiers.values()) + files)
        return Boundaries(tiers, self._scratch), keep_every

    def _memory_bytes(self) -> int:
        configured = self._settings.boundary_memory_bytes
        if configured is not None:
            return configured
        free = psutil.virtual_memory().available
        return int(free * SHARE_OF_FREE_MEMORY * self._share_of_machine)

    def _file_bytes(self) -> int:
        configured = self._settings.boundary_file_bytes
        if configured is not None:
            return configured
        self._scratch.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._scratch.parent).free
        return int(free * SHARE_OF_FREE_MEMORY * self._share_of_machine)

    @property
    def _share_of_machine(self) -> float:
        """This worker's share of its machine: workers that run beside it have the others."""
        if self._stored.device.type == "cuda":
            return 1 / max(1, torch.cuda.device_count())
        return min(1.0, torch.get_num_threads() / (psutil.cpu_count() or 1))

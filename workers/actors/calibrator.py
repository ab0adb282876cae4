"""A worker's part of the calibration: its sweep over its share of the sequences."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor

from service.settings import Settings
from workers.actors.room import boundary_store
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
        self._boundaries = Boundaries({}, self._scratch)
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
        self._boundaries, capacity = boundary_store(
            self._stored.device, self._settings, self._scratch
        )
        needed = sum(batch.numel() for batch in self._batches) * self._stored.bytes_per_token
        self._sweep = CalibrationSweep(
            self._stored.passage,
            self._stored,
            Observed(self._observations, wanted, accumulation_dtype(self._stored.device)),
            self._batches,
            self._boundaries,
            keep_every=stride(self._sweeps.blocks, needed, capacity),
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
        if boundary is not None and self._kept is not None and self._batches:
            self._kept.add(
                boundary,
                self._losses,
                len(self._batches),
                lambda index: self._state(boundary, index),
            )
        return self._losses if each.kind is Kind.LOSS else []

    def end(self) -> None:
        """Forget the hidden states and gradients."""
        self._boundaries.clear()
        self._sweep = None

    def hand_over(self, group: str) -> GroupStatistics:
        """This shard's statistics of a group, which are no longer held here."""
        return self._statistics.pop(group).to(torch.device("cpu"))

    def _state(self, boundary: int, index: int) -> Tensor:
        assert self._sweep is not None  # noqa: S101 - `begin` comes first
        return self._sweep.state(boundary, index)

    def _block(self, group: InputGroup) -> int:
        return self._stored.block_of(group.name)

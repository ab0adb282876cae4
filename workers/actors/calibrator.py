"""A worker's part of the calibration: its sweep over its share of the sequences."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import torch

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
        wanted = tuple(group for group in self._groups if group.name not in solved)
        blocks = {group.name: self._stored.block_of(group.name) for group in wanted}
        unsolved = set(blocks.values())

        def remaining(boundary: int | None) -> list[Pass]:
            return self._sweeps.remaining(unsolved, loss_known=loss_known, boundary=boundary)

        def count(boundary: int) -> int | None:
            usable = self._sweeps.usable(boundary, unsolved)
            return len(remaining(boundary)) if usable else None

        self._kept = kept
        reached, refused = (None, []) if kept is None else kept.restore(count)
        passes = remaining(None if reached is None else reached.boundary)
        if passes:
            self._start(sequences, batch_size, wanted)
            if reached is not None:
                self._begun.resume(reached.boundary, reached.states)
        self._losses = [] if reached is None else reached.losses
        completing = {name: self._sweeps.completing(block) for name, block in blocks.items()}
        return Calibrated(passes, len(self._sweeps.all), completing, self._losses, refused)

    def _start(
        self,
        sequences: Sequence[Sequence[int]],
        batch_size: int,
        wanted: tuple[InputGroup, ...],
    ) -> None:
        """Begin a sweep that observes the wanted groups."""
        batches = [torch.tensor(each) for each in in_batches(sequences, batch_size)]
        self._boundaries, capacity = boundary_store(
            self._stored.device, self._settings, self._scratch
        )
        needed = sum(batch.numel() for batch in batches) * self._stored.bytes_per_token
        self._sweep = CalibrationSweep(
            self._stored.passage,
            self._stored,
            Observed(self._observations, wanted, accumulation_dtype(self._stored.device)),
            batches,
            self._boundaries,
            keep_every=stride(self._sweeps.blocks, needed, capacity),
            mixed_precision=self._mixed_precision,
        )

    def run(self, each: Pass) -> list[float]:
        """Make a pass; the summed loss of every batch, if it is the pass that computes it."""
        sweep = self._begun
        match each.kind:
            case Kind.FORWARD:
                self._statistics |= sweep.forward(each.block)
            case Kind.BACKWARD:
                self._statistics |= sweep.backward(each.block)
            case Kind.LOSS:
                self._losses = sweep.loss()
        boundary = self._sweeps.reached(each)
        if boundary is not None and self._kept is not None and sweep.batches:
            state = partial(sweep.state, boundary)
            self._kept.add(boundary, self._losses, sweep.batches, state)
        return self._losses if each.kind is Kind.LOSS else []

    def end(self) -> None:
        """Forget the hidden states and gradients."""
        self._boundaries.clear()
        self._sweep = None

    def hand_over(self, group: str) -> GroupStatistics:
        """This shard's statistics of a group, which are no longer held here."""
        return self._statistics.pop(group).to(torch.device("cpu"))

    @property
    def _begun(self) -> CalibrationSweep:
        assert self._sweep is not None  # noqa: S101 - passes remain
        return self._sweep

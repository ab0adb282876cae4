"""A worker's part in the recovery: its share of every batch, and the layers that it trains.

Its share goes through the student one block at a time. A layer in training belongs to the worker
that has solved it, its owner, which sends it to the others for each pass over their block, gets
their gradients, and takes the steps. So a worker holds few layers that others own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch

from service.settings import Settings
from workers.actors.replies import TrainingStep
from workers.actors.room import boundary_store
from workers.actors.worker import Worker, cut
from workers.compression.candidates import Width
from workers.compression.eigen import solving_dtype
from workers.compression.recovery.factors import FactorTraining, Whitening
from workers.compression.recovery.scales import ScaleTraining
from workers.compression.recovery.training import (
    Gradients,
    RoundedLayer,
    TrainedLayer,
    Training,
    rate,
)
from workers.compression.statistics import (
    GroupStatistics,
    Observation,
    accumulation_dtype,
    merged,
)
from workers.model.allocator import return_free_memory
from workers.model.blocks import Without
from workers.resumption.checkpoints import Refusal
from workers.resumption.recovery import SavedRecovery
from workers.sweeps.calibration import CalibrationSweep, Observed
from workers.sweeps.distillation import Distillation

T = TypeVar("T")

OBSERVED = frozenset({Observation.MOMENTS, Observation.BOTH_SIDES})
"""The second moments of all layers' inputs, at full size."""


class Recoverer:
    """See the module. Its Ray actor is the worker's, in `workers.actors.interface`."""

    def __init__(self, attempt: str, worker: Worker) -> None:
        self._worker = worker
        self._settings = Settings()
        self._scratch = self._settings.scratch_dir / attempt / f"worker-{worker.number}-recovery"
        self._whitenings: dict[str, Whitening] = {}  # by group
        self._trainings: dict[str, Training] = {}  # by layer, of the target in training
        self._gradients: dict[str, Gradients] = {}  # of owned layers, until their owner's step
        self._saved: list[SavedRecovery] = []
        self._teaching: CalibrationSweep | None = None
        self._statistics: dict[str, GroupStatistics] = {}
        self._distillation: Distillation | None = None

    def begin_teaching(
        self, batches: Sequence[Sequence[Sequence[int]]], groups: Sequence[str], observed: int
    ) -> None:
        """Take shares of batches of full sequences to the first block of the source model.

        The inputs of the layers in these groups are observed in so many of the first batches.
        """
        stored = self._worker.stored
        boundaries, _ = boundary_store(stored.device, self._settings, self._scratch)
        tokens = [torch.tensor(batch) for batch in batches]
        mixed = self._worker.mixed_precision
        wanted = tuple(self._worker.groups[name] for name in groups)
        self._teaching = CalibrationSweep(
            stored.passage,
            stored,
            Observed(OBSERVED, wanted, accumulation_dtype(stored.device), observed),
            tokens,
            boundaries,
            mixed_precision=mixed,
        )
        last = len(stored.passage.blocks)
        self._distillation = Distillation(
            stored.passage,
            stored,
            tokens,
            lambda batch: boundaries.get((last, batch), stored.device),
            boundaries,
            mixed_precision=mixed,
        )

    def teach(self, number: int) -> None:
        """Take all batches through a block of the source model."""
        assert self._teaching is not None  # noqa: S101 - `begin_teaching` comes first
        self._statistics |= self._teaching.forward(number)

    def inputs(self, group: str) -> GroupStatistics:
        """This share's statistics of a group; they are no longer held here."""
        return self._statistics.pop(group).to(torch.device("cpu"))

    def whiten(self, group: str, *shares: GroupStatistics) -> None:
        """Find coordinates of a group's input, from all workers' shares of its statistics."""
        device = self._worker.stored.device
        whole = merged(share.to(device) for share in shares)
        assert whole.inputs is not None  # noqa: S101 - it was observed
        moment = whole.inputs.second_moment() if whole.rows else whole.inputs.scatter
        found = Whitening.of(group, moment, solving_dtype(device))
        self._whitenings[group] = found.to(torch.device("cpu"))

    def begin_recovery(self, forms: Mapping[str, int | Width], layers: Sequence[str]) -> None:
        """Bring the layers that this worker owns to these forms; all `layers` will be trained."""
        if self._distillation is not None:
            self._distillation.weights = Without(self._worker.stored, layers)
        self._trainings = {name: self._begun(name, form) for name, form in forms.items()}

    def _begun(self, name: str, form: int | Width) -> Training:
        stored, solved = self._worker.stored, self._worker.solutions[name]
        if isinstance(form, Width):
            bias = f"{name}.bias"
            biases = stored.read([bias]) if solved.layer.has_bias else {}
            return ScaleTraining(RoundedLayer(solved.weight(form), biases.get(bias)), stored.device)
        spectrum = solved.solution.spectrum
        return FactorTraining(
            cut(stored, solved.solution, form),
            float(spectrum[form:].sum() / spectrum.sum()),
            self._whitenings[self._worker.group_of[name]],
            stored.device,
            mixed_precision=self._worker.mixed_precision,
        )

    def trained(self, names: Sequence[str]) -> tuple[TrainedLayer, ...] | TrainedLayer | None:
        """Some layers in training, as they are now."""
        return _each([self._trainings[name].layer for name in names])

    def enter(self, batch: int) -> None:
        """Take up this worker's share of a batch."""
        return_free_memory()
        self._distilling.enter(batch)

    def forward(
        self, number: int, returns: bool, sent: Sequence[str], *layers: TrainedLayer
    ) -> None:
        """Take the share through a block of the student; others own the layers that are `sent`."""
        student = self._student(number, sent, layers)
        self._distilling.forward(number, student, returns=returns)

    def divergence(self, returns: bool) -> float:
        """The share's divergence from the teacher, after the last block; see `Distillation`."""
        return self._distilling.divergence(returns=returns)

    def backward(
        self, number: int, sent: Sequence[str], *layers: TrainedLayer
    ) -> tuple[Gradients, ...] | Gradients | None:
        """Take the gradient back through a block; those of the layers that were `sent`."""
        student = self._student(number, sent, layers)
        found = self._distilling.backward(number, student)
        self._gradients |= {name: found[name] for name in student if name in self._trainings}
        return _each([found[name] for name in sent])

    def train(
        self, names: Sequence[str], step: TrainingStep, place: int | None, *gradients: Gradients
    ) -> None:
        """Take a step of some owned layers.

        `gradients` are those of the other workers, worker by worker; this one's come at its
        `place`, so that sums have one order.
        """
        for number, name in enumerate(names):
            of_layer = list(gradients[number :: len(names)])
            if place is not None:
                of_layer.insert(place, self._gradients.pop(name))
            self._trainings[name].step(
                of_layer, step.tokens, step.factor * rate(step.number, step.steps)
            )

    def keep(self) -> None:
        """Keep all layers as they are."""
        for training in self._trainings.values():
            training.keep()

    def go_back(self) -> None:
        """Go back to what was kept last."""
        for training in self._trainings.values():
            training.go_back()

    def save_recovery(self, target: str, noted: Mapping[str, Any], ended: bool) -> str | None:
        """Write a checkpoint, with what the driver has noted; the reason if that fails."""
        layers = {name: each.state(ended=ended) for name, each in self._trainings.items()}
        return self._worker.kept_recovery.write(target, noted, layers)

    def saved_recovery(self, target: str) -> tuple[list[Mapping[str, Any]], list[Refusal]]:
        """What is noted in the checkpoints of this target, and the damaged ones."""
        self._saved, refused = self._worker.kept_recovery.restore(target)
        return [each.noted for each in self._saved], refused

    def resume_recovery(self, noted: Mapping[str, Any] | None) -> None:
        """Go on from one of the checkpoints; None: from none of them."""
        for each in self._saved:
            if each.noted == noted:
                for name, training in self._trainings.items():
                    training.resume(each.layers[name])
                break
        self._saved = []

    def end_recovery(self, target: str) -> None:
        """Store the layers as they are, for the target's artifact."""
        for name, training in self._trainings.items():
            self._worker.recovered.put(target, name, training.layer)
        self._trainings = {}

    def end_teaching(self) -> None:
        """Forget the text and the coordinates of inputs."""
        if self._distillation is not None:
            self._distillation.clear()
        self._distillation = self._teaching = None
        self._whitenings = {}
        self._trainings = {}

    def _student(
        self, number: int, sent: Sequence[str], layers: Sequence[TrainedLayer]
    ) -> dict[str, TrainedLayer]:
        owned = [name for name in self._worker.blocks[number] if name in self._trainings]
        own = {name: self._trainings[name].layer for name in owned}
        return own | dict(zip(sent, layers, strict=True))

    @property
    def _distilling(self) -> Distillation:
        assert self._distillation is not None  # noqa: S101 - `begin_teaching` comes first
        return self._distillation


def _each(results: Sequence[T]) -> tuple[T, ...] | T | None:
    """As many results of a call, as Ray wants them: one alone is not in a tuple."""
    return tuple(results) if len(results) > 1 else next(iter(results), None)

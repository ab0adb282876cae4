"""Recovers what was lost: trains the compressed layers towards the dense model.

    teach       the dense model's last hidden states, and the moments of layers' inputs: once
    for each target, for each step:
        forward     a batch through the blocks of the cut model, each worker with its share
        divergence  from the dense model's predictions
        backward    through the blocks; the owner of each layer sums the gradients and takes a step

Sequences that are kept aside decide what is kept, see `workers.attempt.course`.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import ray

from service.domain.recovery_plan import batches_to_observe
from service.domain.spec.calibration import Recovery
from service.domain.spec.job import JobSpec
from workers.actors.replies import ModelSummary, TrainingStep
from workers.attempt.course import Batches, Course, RecoveredTarget, Verdict
from workers.attempt.progress import Progress, StepMeter
from workers.attempt.resume import refuse
from workers.compression.candidates import Width
from workers.compression.shapes import InputGroup
from workers.resumption.write_throttle import ASSUMED_BYTES_PER_SECOND, WriteThrottle

BLOCKS_IN_FLIGHT = 2
"""For how many blocks the layers are in the object store at once."""

CHECKED = "recovery.checked"
GAINED_NOTHING = "recovery.gained_nothing"


Trained = Mapping[str, int | Width]
"""The forms of those layers that are trained, before that: their ranks or widths."""


@dataclass(frozen=True)
class _Block:
    """The layers in training in a block, by the number of the worker that owns them."""

    number: int
    owned: Mapping[int, list[str]] = field(default_factory=dict)

    def sent_to(self, worker: int) -> list[str]:
        """Those that others own."""
        return [name for owner in self.others(worker) for name in self.owned[owner]]

    def others(self, worker: int) -> list[int]:
        return [owner for owner in self.owned if owner != worker]


class Recoveries:
    """The recoveries of a job's targets, on its workers; `owned` has the groups of each worker."""

    def __init__(
        self,
        workers: Sequence[Any],
        owned: Sequence[Sequence[InputGroup]],
        model: ModelSummary,
        spec: JobSpec,
        wanted: Recovery,
        sequences: Sequence[Sequence[int]],
        progress: Progress,
        meter: StepMeter,
        checkpoint_share_of_time: float,
    ) -> None:
        self._workers = workers
        self._active = workers[: wanted.batch_size]  # each has a share of every batch
        self._owners = {
            layer.name: number
            for number, groups in enumerate(owned)
            for group in groups
            for layer in group.layers
        }
        self._model = model
        self._wanted = wanted
        self._seed = spec.calibration.seed
        self._length = spec.calibration.sequence_length
        self._batches = Batches.of(sequences, wanted.batch_size, self._seed)
        self._progress = progress
        self._meter = meter
        self._share_of_time = checkpoint_share_of_time

    @property
    def steps(self) -> int:
        """How many steps the recovery of a target takes."""
        return self._wanted.epochs * len(self._batches.training)

    def run(self, targets: Mapping[str, Trained]) -> dict[str, RecoveredTarget]:
        """Recover targets, by name. The layers of each are with their owners then."""
        self._meter.expect(self.steps * len(targets))
        forms = chain.from_iterable(each.items() for each in targets.values())
        self._teach({name for name, form in forms if isinstance(form, int)})
        found = {target: self._target(target, each) for target, each in targets.items()}
        ray.get([worker.end_teaching.remote() for worker in self._workers])
        return found

    def _teach(self, layers: set[str]) -> None:
        """Take all batches through the dense model; whiten the inputs of these, of low rank."""
        wanted = [g for g in self._model.groups if layers & {layer.name for layer in g.layers}]
        names = [group.name for group in wanted]
        widest = max((layer.in_features for g in wanted for layer in g.layers), default=0)
        observed = batches_to_observe(widest, self._wanted.batch_size, self._length)
        shares = [self._batches.shares(n, len(self._active)) for n in range(len(self._active))]
        ray.get(
            [
                worker.begin_teaching.remote(share, names, observed)
                for worker, share in zip(self._active, shares, strict=True)
            ]
        )
        running: deque[list[Any]] = deque()
        for number, inside in enumerate(self._model.blocks):
            calls = [worker.teach.remote(number) for worker in self._active]
            for group in wanted:
                if group.name in inside:
                    inputs = [worker.inputs.remote(group.name) for worker in self._active]
                    owner = self._workers[self._owners[group.name]]
                    calls.append(owner.whiten.remote(group.name, *inputs))
            running.append(calls)
            if len(running) > BLOCKS_IN_FLIGHT:
                ray.get(running.popleft())
        ray.get([call for calls in running for call in calls])

    def _target(self, target: str, trained: Trained) -> RecoveredTarget:
        start = time.perf_counter()
        blocks = self._blocks(trained)
        self._begin(trained)
        course = self._resumed(target)
        self._meter.advance(course.step)
        expected = self._seconds_to_save(trained)
        throttle = WriteThrottle(1, expected, share_of_time=self._share_of_time)
        if not course.checks:
            self._check(target, course, blocks)
        while course.step < course.steps:
            for _ in range(course.pause):
                self._step(course, blocks)
                course.step += 1
                self._meter.advance()
                throttle.worked(1)
            verdict = self._check(target, course, blocks)
            done = course.step == course.steps
            if (verdict is Verdict.KEEP and throttle.due) or done:
                if done:
                    ray.get([worker.go_back.remote() for worker in self._workers])
                with throttle.writing():
                    self._save(target, course)
        ray.get([worker.end_recovery.remote(target) for worker in self._workers])
        recovered = RecoveredTarget(course, round(time.perf_counter() - start, 3))
        if not recovered.gained:
            self._progress.note(
                GAINED_NOTHING,
                f"{target}: recovery has not made the divergence from the dense model smaller; "
                "the artifact is as it was before.",
                {"target": target, **course.as_data()},
                is_warning=True,
            )
        return recovered

    def _seconds_to_save(self, trained: Trained) -> float:
        """Before any was, of a checkpoint with Adam's means. Scales are next to nothing."""
        numbers = sum(
            form * (layer.in_features + layer.out_features)
            for layer in self._model.layers
            if isinstance(form := trained.get(layer.name), int)
        )
        return 3 * 4 * numbers / len(self._workers) / ASSUMED_BYTES_PER_SECOND

    def _blocks(self, trained: Trained) -> list[_Block]:
        blocks = []
        for number, inside in enumerate(self._model.blocks):
            owned: dict[int, list[str]] = {}
            for name in inside:
                if name in trained:
                    owned.setdefault(self._owners[name], []).append(name)
            blocks.append(_Block(number, dict(sorted(owned.items()))))
        return blocks

    def _begin(self, trained: Trained) -> None:
        own: list[dict[str, int | Width]] = [{} for _ in self._workers]
        for name, form in trained.items():
            own[self._owners[name]][name] = form
        ray.get(
            [
                worker.begin_recovery.remote(each, list(trained))
                for worker, each in zip(self._workers, own, strict=True)
            ]
        )

    def _resumed(self, target: str) -> Course:
        """Where an earlier attempt has come to, as far as all workers have it."""
        replies = ray.get([worker.saved_recovery.remote(target) for worker in self._workers])
        for _, refused in replies:
            for refusal in refused:
                refuse(self._progress, refusal)
        common = [each for each in replies[0][0] if all(each in noted for noted, _ in replies)]
        noted = max(common, key=lambda each: int(each["step"]), default=None)
        ray.get([worker.resume_recovery.remote(noted) for worker in self._workers])
        return Course(self.steps) if noted is None else Course.from_data(noted)

    def _save(self, target: str, course: Course) -> None:
        ended = course.step == course.steps
        saving = [w.save_recovery.remote(target, course.as_data(), ended) for w in self._workers]
        for number, trouble in enumerate(ray.get(saving)):
            if trouble is not None:
                self._progress.note(
                    "checkpoint.skipped",
                    f"Worker {number} could not write a checkpoint and went on: {trouble}",
                    {"worker": number, "reason": trouble},
                )

    def _check(self, target: str, course: Course, blocks: Sequence[_Block]) -> Verdict:
        """Measure the divergence aside, and do what the course says then."""
        tokens = len(self._batches.aside) * self._length
        number = len(self._batches.training)
        divergence = self._forward(number, blocks, returns=False) / tokens
        verdict = course.check(divergence)
        if verdict is Verdict.KEEP:
            ray.get([worker.keep.remote() for worker in self._workers])
        elif verdict is Verdict.GO_BACK:
            ray.get([worker.go_back.remote() for worker in self._workers])
        self._progress.note(
            CHECKED,
            f"{target}: {_checked(course, divergence)}",
            {"target": target, **course.as_data()},
        )
        return verdict

    def _step(self, course: Course, blocks: Sequence[_Block]) -> None:
        """Take one step with the next batch."""
        epoch, place = divmod(course.step, len(self._batches.training))
        batch = self._batches.order(epoch, self._seed)[place]
        divergence = self._forward(batch, blocks, returns=True)
        if not math.isfinite(divergence):
            return  # the next check goes back
        step = TrainingStep(
            course.step,
            course.steps,
            len(self._batches.training[batch]) * self._length,
            course.factor * self._wanted.step_size,
        )
        running: deque[list[Any]] = deque()
        for block in reversed(blocks):
            running.append(list(self._backward(block, step)))
            if len(running) > BLOCKS_IN_FLIGHT:
                ray.get(running.popleft())
        ray.get([call for calls in running for call in calls])

    def _forward(self, batch: int, blocks: Sequence[_Block], *, returns: bool) -> float:
        """The summed divergence of a batch, which has gone through all blocks."""
        running: deque[list[Any]] = deque([[w.enter.remote(batch) for w in self._active]])
        for block in blocks:
            layers = self._layers(block)
            running.append(
                [
                    worker.forward.remote(block.number, returns, *_sent(block, number, layers))
                    for number, worker in enumerate(self._active)
                ]
            )
            del layers
            if len(running) > BLOCKS_IN_FLIGHT:
                ray.get(running.popleft())
        ray.get([call for calls in running for call in calls])
        return math.fsum(ray.get([worker.divergence.remote(returns) for worker in self._active]))

    def _backward(self, block: _Block, step: TrainingStep) -> Iterator[Any]:
        """Take a batch back through a block, and a step of its layers; yields Ray's references."""
        layers = self._layers(block)
        gradients: list[dict[str, Any]] = []  # by active worker: of the layers that others own
        for number, worker in enumerate(self._active):
            sent, *given = _sent(block, number, layers)
            call = worker.backward.options(num_returns=max(1, len(sent)))
            references = call.remote(block.number, sent, *given)
            gradients.append(dict(zip(sent, _listed(references), strict=True)) if sent else {})
            if not sent:
                yield references
        for owner, names in block.owned.items():
            place = owner if owner < len(self._active) else None
            others = [each for number, each in enumerate(gradients) if number != place]
            given = [each[name] for each in others for name in names]
            yield self._workers[owner].train.remote(names, step, place, *given)

    def _layers(self, block: _Block) -> dict[str, Any]:
        """References to those layers that any active worker does not own."""
        found: dict[str, Any] = {}
        for owner, names in block.owned.items():
            if any(number != owner for number in range(len(self._active))):
                call = self._workers[owner].trained.options(num_returns=len(names))
                found |= zip(names, _listed(call.remote(names)), strict=True)
        return found


def _checked(course: Course, divergence: float) -> str:
    """The last check in words."""
    measured = f"the divergence from the dense model is {divergence:.4f} nats per token"
    if not course.step:
        return f"before its {course.steps} steps {measured}."
    before = course.checks[0][1]
    return f"after {course.step} of {course.steps} steps {measured}, {before:.4f} before them."


def _sent(block: _Block, worker: int, layers: Mapping[str, Any]) -> list[Any]:
    """The names of the layers that a worker does not own, and references to them."""
    sent = block.sent_to(worker)
    return [sent, *(layers[name] for name in sent)]


def _listed(references: Any) -> list[Any]:
    """Ray's references to the results of a call; one alone is not in a list."""
    return references if isinstance(references, list) else [references]

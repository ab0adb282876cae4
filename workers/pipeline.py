"""One attempt from beginning to end: the seven steps, over the actors of a crew.

    resolve ─> calibrate ─> solve ─> allocate ─> assemble ─> evaluate ─> publish

Each step takes what the steps before it gave and returns plain data; big tensors stay on the
workers. An error of any step ends the attempt: nothing here retries.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import ray

from service.errors import ModelInvalid
from service.jobs import Artifact, Job
from service.settings import Settings
from service.spec import EvaluationTask, LmEval, QualityTarget, Target
from service.states import Step
from workers.checkpoint_writer import CheckpointSize
from workers.compression.allocation import LayerOptions, Ranks
from workers.crew import Crew
from workers.evaluation.problems import Exercise
from workers.evaluation.scores import Scores
from workers.evaluation.text import TextLoss
from workers.placement import assign_owners, plan_placement, shares
from workers.probes import Probe, Probes
from workers.progress import Progress
from workers.report import Evaluation, TargetResult, job_report, model_card
from workers.schedule import Call, drive
from workers.sequences import in_batches
from workers.targets import MAX_PROBES, choose_ranks, curve_ranks
from workers.texts import Texts
from workers.worker import ModelSummary

DENSE = -1
"""Stands for the source model where artifacts are numbered."""

TEXT, TASK = "text", "task"

Result = TypeVar("Result")

MAX_NAMES_IN_EVENT = 20
CLEANING_SECONDS = 10


@dataclass(frozen=True)
class Outcome:
    """What a finished attempt hands to the database."""

    artifacts: list[Artifact]
    report: dict[str, Any]


@dataclass(frozen=True)
class Assembled:
    """An artifact on the disk of the node of a worker, which has an assembler beside it."""

    target: Target
    ranks: Ranks
    worker: int
    folder: Path
    size: CheckpointSize


@dataclass(frozen=True, eq=False)
class Measurement:
    """One batch of a text or of a task, which every model is measured on."""

    kind: str  # TEXT or TASK
    name: str
    number: int  # of the batch: models are compared sample by sample
    batch: Sequence[Any]
    task: EvaluationTask | None = None

    @property
    def samples(self) -> int:
        return len(self.batch)

    def submit(self, worker: Any, folder: Path | None) -> Any:
        """A reference to the TextLoss or the Scores of the model in a folder; None: the source."""
        if self.task is None:
            return worker.measure.remote(folder, self.batch)
        return worker.score.remote(folder, self.task, self.batch)


def run_attempt(job: Job, progress: Progress, settings: Settings) -> Outcome:
    """Compress the job's model. Raises the errors of `service.errors` and of the steps."""
    machines = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [machine["Resources"] for machine in machines if machine["Alive"]]
    placement = plan_placement(job.spec.workers, nodes, settings.max_running_jobs)
    with Crew(f"{job.id}-{job.attempt}", job.spec, placement) as crew:
        attempt = _Attempt(job, progress, settings, crew)
        return attempt.run()


class _Attempt:
    def __init__(self, job: Job, progress: Progress, settings: Settings, crew: Crew) -> None:
        self.job = job
        self.spec = job.spec
        self.progress = progress
        self.settings = settings
        self.workers = crew.workers
        self.crew = crew
        self.owners: dict[str, Any] = {}  # layer name -> the worker that solved it
        self.assemblers: list[Any] = []

    def run(self) -> Outcome:
        try:
            model, texts, exercises = self.resolve()
            calibration_loss = self.calibrate(texts)
            options = self.solve(model)
            choices, probes = self.allocate(model, options, texts)
            assembled = self.assemble(model, choices)
            dense, evaluations = self.evaluate(texts, exercises, assembled)
            results = [
                TargetResult(artifact.target, artifact.ranks, artifact.size, evaluation)
                for artifact, evaluation in zip(assembled, evaluations, strict=True)
            ]
            report = partial(
                job_report,
                self.job,
                model,
                options,
                texts,
                calibration_loss,
                dense,
                results,
                probes,
                self.progress.seconds,
            )
            artifacts = self.publish(assembled, report())
            return Outcome(artifacts, report())  # which now knows how long publishing took
        finally:
            self._clean()

    def resolve(self) -> tuple[ModelSummary, Texts, list[Exercise]]:
        """Load the model on every worker, cut the texts and read the problems on one."""
        with self.progress.step(Step.RESOLVE, "workers") as meter:
            meter.expect(len(self.workers))
            places = ray.get([worker.place.remote() for worker in self.workers])
            self.progress.note(
                "workers.placed",
                f"{len(places)} workers on {', '.join(place.device for place in places)}.",
                {"workers": [asdict(place) for place in places]},
            )
            texts_reference = self.workers[0].texts.remote()
            summaries = []
            for _, summary in drive([[Call(None, w.load.remote)] for w in self.workers]):
                summaries.append(summary)
                meter.advance()
            exercises: list[Exercise] = ray.get(self.workers[0].exercises.remote())
            texts: Texts = ray.get(texts_reference)
            if texts.skipped_files:
                self.progress.note(
                    "texts.skipped",
                    f"{len(texts.skipped_files)} files are not text and were skipped.",
                    {"files": texts.skipped_files[:MAX_NAMES_IN_EVENT]},
                )
            return summaries[0], texts, exercises

    def calibrate(self, texts: Texts) -> float:
        """Each worker its share; the mean loss in nats per predicted token is returned."""
        size = self.spec.calibration.batch_size
        with self.progress.step(Step.CALIBRATE, "sequences") as meter:
            meter.expect(len(texts.calibration))
            losses = []
            queues = [
                [
                    Call(len(batch), partial(worker.calibrate.remote, batch))
                    for batch in in_batches(share, size)
                ]
                for worker, share in self._shares(texts.calibration)
            ]
            for count, loss in drive(queues):
                losses.append(loss)
                meter.advance(count)
        predicted = len(texts.calibration) * (self.spec.calibration.sequence_length - 1)
        return math.fsum(losses) / predicted

    def solve(self, model: ModelSummary) -> list[LayerOptions]:
        """Each group at its owner, which is given every shard's statistics of it."""
        with self.progress.step(Step.SOLVE, "groups") as meter:
            meter.expect(len(model.groups))
            queues = []
            for worker, groups in zip(
                self.workers, assign_owners(model.groups, len(self.workers)), strict=True
            ):
                queues.append([Call(g.name, partial(self._solve, worker, g.name)) for g in groups])
                self.owners |= {layer.name: worker for g in groups for layer in g.layers}
            solved: dict[str, LayerOptions] = {}
            for _, options in drive(queues):
                solved |= {layer.name: layer for layer in options}
                meter.advance()
        return [solved[layer.name] for layer in model.layers]

    def _solve(self, owner: Any, group: str) -> Any:
        return owner.solve.remote(group, *(w.statistics.remote(group) for w in self.workers))

    def allocate(
        self, model: ModelSummary, options: Sequence[LayerOptions], texts: Texts
    ) -> tuple[list[Ranks], list[Probe]]:
        """The ranks of every target, from the one set of spectra, and what was measured for it."""
        qualities = [t for t in self.spec.targets if isinstance(t, QualityTarget)]
        curve = self.spec.evaluation.curve
        with self.progress.step(Step.ALLOCATE, "sizes") as meter:
            sizes = len(self.spec.targets) - len(qualities)
            meter.expect(sizes + len(qualities) * MAX_PROBES + len(curve))
            probes = Probes(
                self.workers,
                self.owners,
                texts.evaluation,
                batch_size=self.spec.calibration.batch_size,
                dtype=self._dtype(model),
                advance=meter.advance,
            )
            probes.dense(sorted({target.dataset for target in qualities}))
            choices = choose_ranks(self.spec, model.parameters, options, probes.increase)
            for ranks in curve_ranks(self.spec, options):
                if ranks not in choices:  # those are measured as artifacts
                    probes.measure(ranks, [text.name for text in texts.evaluation])
            probes.end()
            return choices, probes.done

    def _dtype(self, model: ModelSummary) -> str:
        return model.dtype if self.spec.dtype == "auto" else self.spec.dtype

    def assemble(self, model: ModelSummary, choices: Sequence[Ranks]) -> list[Assembled]:
        """Write every target's checkpoint, beside the worker that will measure it."""
        dtype = self._dtype(model)
        with self.progress.step(Step.ASSEMBLE, "targets") as meter:
            meter.expect(len(choices))
            count = min(len(self.workers), len(choices))
            self.assemblers = [self.crew.assembler(beside) for beside in range(count)]
            queues: list[list[Call]] = [[] for _ in self.assemblers]
            for number, (target, choice) in enumerate(zip(self.spec.targets, choices, strict=True)):
                ranks = {name: rank for name, rank in choice.items() if rank is not None}
                owners = {name: self.owners[name] for name in ranks}
                assembler = self.assemblers[number % count]
                write = partial(assembler.assemble.remote, target.name, ranks, owners, dtype)
                queues[number % count].append(Call(number, write))
            written = {}
            for number, result in drive(queues):
                written[number] = result
                meter.advance()
            ray.get([worker.release.remote() for worker in self.workers])
        return [
            Assembled(target, choice, number % count, *written[number])
            for number, (target, choice) in enumerate(zip(self.spec.targets, choices, strict=True))
        ]

    def evaluate(
        self, texts: Texts, exercises: Sequence[Exercise], assembled: Sequence[Assembled]
    ) -> tuple[Evaluation | None, list[Evaluation | None]]:
        """The dense model's batches are shared by all; an artifact's stay on its node."""
        if not self.spec.evaluation.enabled:
            return None, [None] * len(assembled)
        batches = self._measurements(texts, exercises)
        with self.progress.step(Step.EVALUATE, "samples") as meter:
            meter.expect(sum(batch.samples for batch in batches) * (1 + len(assembled)))
            measured: dict[tuple[int, str, str], dict[int, Any]] = defaultdict(dict)
            for (model, batch), result in drive(self._calls(batches, assembled)):
                measured[model, batch.kind, batch.name][batch.number] = result
                meter.advance(batch.samples)
            folders = [
                (DENSE, 0, None),
                *((n, a.worker, a.folder) for n, a in enumerate(assembled)),
            ]
            # One after the other, on machines that do nothing else.
            dense, *others = (
                Evaluation(
                    {
                        text.name: TextLoss.total(_in_order(measured[number, TEXT, text.name]))
                        for text in texts.evaluation
                    },
                    {
                        exercise.task.name: _scores(
                            exercise.task, _in_order(measured[number, TASK, exercise.task.name])
                        )
                        for exercise in exercises
                    },
                    self._decode_speed(texts, self.workers[worker], folder),
                )
                for number, worker, folder in folders
            )
            if not all(math.isfinite(loss.perplexity) for loss in dense.losses.values()):
                raise ModelInvalid("its loss on the evaluation text is not finite", param="model")
            return dense, list(others)

    def _measurements(self, texts: Texts, exercises: Sequence[Exercise]) -> list[Measurement]:
        """What every model is measured on, in batches."""
        size = self.spec.calibration.batch_size
        batches = []
        for text in texts.evaluation:
            for number, sequences in enumerate(in_batches(sorted(text.sequences, key=len), size)):
                batches.append(Measurement(TEXT, text.name, number, sequences))
        for exercise in exercises:
            together = 1 if isinstance(exercise.task, LmEval) else size
            for number, problems in enumerate(in_batches(exercise.problems, together)):
                batches.append(
                    Measurement(TASK, exercise.task.name, number, problems, exercise.task)
                )
        return batches

    def _calls(
        self, batches: Sequence[Measurement], assembled: Sequence[Assembled]
    ) -> list[list[Call]]:
        """Per worker: its share of the dense model's batches, then its artifacts' batches."""
        queues: list[list[Call]] = [[] for _ in self.workers]

        def call(model: int, number: int, folder: Path | None, batch: Measurement) -> None:
            submit = partial(batch.submit, self.workers[number], folder)
            queues[number].append(Call((model, batch), submit))

        for batch, number in zip(batches, cycle(range(len(queues)))):
            call(DENSE, number, None, batch)
        for index, artifact in enumerate(assembled):
            for batch in batches:
                call(index, artifact.worker, artifact.folder, batch)
        return queues

    def _decode_speed(self, texts: Texts, worker: Any, folder: Path | None) -> float | None:
        if not self.spec.evaluation.decode_tokens:
            return None
        speed: float = ray.get(worker.decode_speed.remote(folder, texts.evaluation[0].sequences[0]))
        return round(speed, 2)

    def publish(self, assembled: Sequence[Assembled], report: dict[str, Any]) -> list[Artifact]:
        """Upload every artifact, its manifest last."""
        with self.progress.step(Step.PUBLISH, "artifacts") as meter:
            meter.expect(len(assembled))
            queues: list[list[Call]] = [[] for _ in self.assemblers]
            for number, artifact in enumerate(assembled):
                name = artifact.target.name
                upload = partial(
                    self.assemblers[artifact.worker].publish.remote,
                    self.job.id,
                    self.job.attempt,
                    name,
                    report,
                    model_card(report, name),
                )
                queues[artifact.worker].append(Call(number, upload))
            published = {}
            for number, done in drive(queues):
                published[number] = done
                meter.advance()
            return [published[number] for number in range(len(assembled))]

    def _shares(self, sequences: list[list[int]]) -> Iterator[tuple[Any, Sequence[list[int]]]]:
        return zip(self.workers, shares(sequences, len(self.workers)), strict=True)

    def _clean(self) -> None:
        # One that is dead or still writes is not waited for: what it leaves, a later driver sweeps.
        with suppress(ray.exceptions.RayError):
            ray.get([a.clean.remote() for a in self.assemblers], timeout=CLEANING_SECONDS)


def _scores(task: EvaluationTask, batches: Sequence[Scores]) -> Scores:
    """Of a whole task: batches of problems, or the tasks of lm-eval that it names."""
    return Scores.union(batches) if isinstance(task, LmEval) else Scores.total(batches)


def _in_order(batches: Mapping[int, Result]) -> list[Result]:
    """Results by the numbers of their batches: models are compared sample by sample."""
    return [batches[number] for number in sorted(batches)]

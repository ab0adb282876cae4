"""Measures every model of a job on texts and tasks, batch by batch.

Texts are measured in one sweep over the blocks for all models. For the tasks a worker first
measures the artifacts that it has written, then the dense model together with all others, then what
is left of the artifacts of other workers on its node. A result in the journal is not measured
again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray

from service.domain.spec.evaluation import Evaluation as EvaluationSpec
from service.domain.spec.evaluation import EvaluationTask, LmEval
from workers.attempt.loss_sweeps import LossSweeps, Variant
from workers.attempt.report import Evaluation
from workers.attempt.schedule import Call, drive
from workers.evaluation.losses import TextLoss
from workers.evaluation.problems import Exercise
from workers.evaluation.scores import Scores
from workers.resumption.journal import Journal
from workers.text.sequences import in_batches, in_padded_batches
from workers.text.texts import Texts

TEXT, TASK = "text", "task"


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that is measured."""

    key: str  # its name in the journal: equal keys are equal models
    forms: Variant
    worker: int | None  # who wrote the folder, on its node; None: every worker has the model
    folder: Path | None  # None: the source model


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch of a text or of a task; every model is measured on it."""

    kind: str  # TEXT or TASK
    name: str
    number: int
    samples: Sequence[Any]
    task: EvaluationTask | None = None

    def submit(self, worker: Any, folder: Path | None) -> Any:
        """Have the model in `folder` (None: the source) solve the problems; Ray's reference."""
        return worker.score.remote(folder, self.task, self.samples)


class Measurements:
    """All results of all subjects, one batch at a time."""

    def __init__(
        self,
        workers: Sequence[Any],
        nodes: Sequence[str],
        texts: Texts,
        exercises: Sequence[Exercise],
        subjects: Sequence[Subject],
        journal: Journal,
        batch_size: int,
    ) -> None:
        self._workers = workers
        self._nodes = nodes
        self._texts = texts
        self._exercises = exercises
        self._subjects = subjects
        self._journal = journal
        self._batches = _batches(texts, exercises, batch_size)

    @property
    def samples(self) -> int:
        """The number of samples of all subjects together."""
        return len(self._subjects) * sum(len(batch.samples) for batch in self._batches)

    @property
    def known(self) -> int:
        """The number of samples whose results the journal has."""
        missing = (batch for subject in self._subjects for batch in self._missing(subject))
        return self.samples - sum(len(batch.samples) for batch in missing)

    def texts(self, sweeps: LossSweeps, advance: Callable[[int], None]) -> None:
        """Measure the missing texts of all models at once; `advance` counts the samples."""
        subjects = [s for s in self._subjects if any(b.kind == TEXT for b in self._missing(s))]
        variants = [subject.forms for subject in subjects]
        batches = [batch for batch in self._batches if batch.kind == TEXT]
        if not subjects:
            return
        samples = sum(len(b.samples) for s in subjects for b in self._missing(s) if b.kind == TEXT)

        def advance_to(done: int, steps: int) -> None:
            advance(samples * done // steps - samples * (done - 1) // steps)

        losses = sweeps.measure(variants, [batch.samples for batch in batches], advance_to)
        for subject, each in zip(subjects, losses, strict=True):
            for batch, loss in zip(batches, each, strict=True):
                if self._journal.get(_key(subject, batch)) is None:
                    self._journal.put(_key(subject, batch), loss)
        self._journal.flush()

    def tasks(self) -> Iterator[int]:
        """Measure the missing batches of tasks; yield the number of samples of each as it ends."""
        for (subject, batch), result in drive(self._queues()):
            self._journal.put(_key(subject, batch), result)
            yield len(batch.samples)
        self._journal.flush()

    def evaluation(self, subject: Subject, wanted: EvaluationSpec) -> Evaluation:
        """The measurements of one model. Its speed is measured now, while no other call runs, and
        it continues the prompts.
        """
        found: Mapping[tuple[str, str], list[Any]] = defaultdict(list)
        for batch in self._batches:
            found[batch.kind, batch.name].append(self._journal.get(_key(subject, batch)))
        return Evaluation(
            {text.name: TextLoss.total(found[TEXT, text.name]) for text in self._texts.evaluation},
            {
                exercise.task.name: _scores(exercise.task, found[TASK, exercise.task.name])
                for exercise in self._exercises
            },
            self._decode_speed(subject) if wanted.decode_tokens else None,
            self._continuations(subject) if wanted.prompts else (),
        )

    def _queues(self) -> list[Iterator[Call]]:
        """A queue per worker; workers that measure the same model share its batches.

        Their order spares loading models: a worker changes over to an artifact that another one
        measures only when nothing else is left.
        """
        batches = {
            subject: (batch for batch in self._missing(subject) if batch.kind == TASK)
            for subject in self._subjects
        }
        return [self._queue(number, batches) for number in range(len(self._workers))]

    def _missing(self, subject: Subject) -> list[Batch]:
        """The batches whose results the journal lacks."""
        return [b for b in self._batches if self._journal.get(_key(subject, b)) is None]

    def _readable(self, number: int) -> list[Subject]:
        """The models that a worker can load."""
        return [
            subject
            for subject in self._subjects
            if subject.worker is None or self._nodes[subject.worker] == self._nodes[number]
        ]

    def _queue(self, number: int, batches: Mapping[Subject, Iterator[Batch]]) -> Iterator[Call]:
        for subject in sorted(self._readable(number), key=partial(_distance, number)):
            for batch in batches[subject]:
                submit = partial(batch.submit, self._workers[number], subject.folder)
                yield Call((subject, batch), submit)

    def _decode_speed(self, subject: Subject) -> float:
        key = f"speed/{subject.key}"
        speed: float | None = self._journal.get(key)
        if speed is None:
            worker = self._workers[subject.worker or 0]
            prompt = self._texts.evaluation[0].sequences[0]
            speed = round(ray.get(worker.decode_speed.remote(subject.folder, prompt)), 2)
            self._journal.put(key, speed)
        return speed

    def _continuations(self, subject: Subject) -> tuple[str, ...]:
        key = f"continuations/{subject.key}"
        written: tuple[str, ...] | None = self._journal.get(key)
        if written is None:
            worker = self._workers[subject.worker or 0]
            written = ray.get(worker.continuations.remote(subject.folder))
            self._journal.put(key, written)
        return written


def _batches(texts: Texts, exercises: Sequence[Exercise], size: int) -> list[Batch]:
    batches = []
    for text in texts.evaluation:
        for number, sequences in enumerate(in_padded_batches(text.sequences, size)):
            batches.append(Batch(TEXT, text.name, number, sequences))
    for exercise in exercises:
        batch_size = 1 if isinstance(exercise.task, LmEval) else size
        for number, problems in enumerate(in_batches(exercise.problems, batch_size)):
            batches.append(Batch(TASK, exercise.task.name, number, problems, exercise.task))
    return batches


def _distance(number: int, subject: Subject) -> int:
    """The worker's own artifacts come first, then the dense model, then others' artifacts."""
    if subject.worker is None:
        return 1
    return 0 if subject.worker == number else 2


def _key(subject: Subject, batch: Batch) -> str:
    return f"evaluation/{subject.key}/{batch.kind}/{batch.name}/{batch.number}"


def _scores(task: EvaluationTask, batches: Sequence[Scores]) -> Scores:
    """The scores of a whole task, from its batches of problems or its tasks of lm-eval."""
    return Scores.union(batches) if isinstance(task, LmEval) else Scores.total(batches)

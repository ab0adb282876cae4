"""Which worker measures which model, in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from service.domain.spec.evaluation import Evaluation
from tests.unit.workers.resumption.test_checkpoints import Memory, of_attempt
from workers.attempt.measurements import Batch, Measurements, Subject
from workers.attempt.schedule import Call
from workers.evaluation.losses import SequenceLoss, TextLoss
from workers.evaluation.problems import Exercise
from workers.resumption.journal import Journal
from workers.text.texts import EvaluationText, Texts

DENSE = Subject("dense", None, None, None)
SMALL = Subject("small", {}, 0, Path("small"))
SMALLER = Subject("smaller", {}, 1, Path("smaller"))


class Worker:
    """Stands for a Ray actor; a call returns the actor's number and what it is to measure."""

    def __init__(self, number: int) -> None:
        self.score = SimpleNamespace(remote=lambda *arguments: (number, *arguments))


def test_a_worker_alone_on_its_node_measures_its_artifact_and_then_the_dense_model(
    journal: Journal,
) -> None:
    one, other = queues(journal, ["a", "b"])
    assert taken(one, 5) == [SMALL] * 4 + [DENSE]
    assert taken(other, 99) == [SMALLER] * 4 + [DENSE] * 3
    assert taken(one, 99) == []


def test_a_worker_without_an_artifact_helps_those_on_its_node(journal: Journal) -> None:
    one, other, helper, stranger = queues(journal, ["a", "b", "a", "c"])
    assert taken(helper, 5) == [DENSE] * 4 + [SMALL]
    assert taken(stranger, 99) == []
    assert taken(other, 99) == [SMALLER] * 4
    assert taken(one, 99) == [SMALL] * 3


def test_every_batch_of_every_model_is_measured_once_by_the_worker_of_the_queue(
    journal: Journal,
) -> None:
    waiting = queues(journal, ["a", "a"])
    measured: list[tuple[Subject, Batch]] = []
    while calls := [(n, call) for n, queue in enumerate(waiting) if (call := next(queue, None))]:
        for number, call in calls:
            subject, batch = label(call)
            assert call.submit() == (number, subject.folder, batch.task, batch.samples)
            measured.append((subject, batch))
    assert Counter(subject for subject, _ in measured) == {DENSE: 4, SMALL: 4, SMALLER: 4}
    assert len(set(measured)) == len(measured)


TEXTS_ALONE = Evaluation(decode_tokens=0)


@pytest.fixture
def journal() -> Journal:
    return Journal(of_attempt(Memory(), 1))


def queues(journal: Journal, nodes: Sequence[str]) -> list[Iterator[Call]]:
    """The queues of one worker per node for three models and a task of four batches."""
    task: Any = SimpleNamespace(name="questions")
    texts = Texts(2, [], [], [])
    measurements = Measurements(
        [Worker(number) for number in range(len(nodes))],
        nodes,
        texts,
        [Exercise(task, [SimpleNamespace()] * 8)],  # type: ignore[list-item]
        [DENSE, SMALL, SMALLER],
        journal,
        2,
    )
    return measurements._queues()


def taken(queue: Iterator[Call], count: int) -> list[Subject]:
    """The models of the next calls of a queue, at most `count`."""
    return [label(call)[0] for call in islice(queue, count)]


def label(call: Call) -> tuple[Subject, Batch]:
    """The model and the batch that a call measures."""
    assert isinstance(call.label, tuple)
    return call.label


class Sweeps:
    """Stands for the workers' sweeps; a loss says which variant and which batch it is of."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []

    def measure(
        self, variants: Sequence[Any], batches: Sequence[Any], advance: Callable[[int, int], None]
    ) -> list[list[TextLoss]]:
        self.made.append((len(variants), len(batches)))
        for done in (1, 2, 3):
            advance(done, 3)
        return [
            [TextLoss(tuple(SequenceLoss(number, 2, 0) for _ in batch)) for batch in batches]
            for number in range(len(variants))
        ]


def test_texts_of_all_models_are_measured_in_one_sweep_and_only_once(journal: Journal) -> None:
    texts = Texts(2, [], [EvaluationText("held-out", 1, [[1, 2, 3]] * 8)], [])
    measurements = Measurements([], [], texts, [], [DENSE, SMALL, SMALLER], journal, 2)
    sweeps: Any = Sweeps()
    parts: list[int] = []
    measurements.texts(sweeps, parts.append)
    assert (len(parts), sum(parts)) == (3, 3 * 8)
    assert sweeps.made == [(3, 4)]
    assert measurements.known == measurements.samples == 24
    loss = measurements.evaluation(SMALLER, TEXTS_ALONE).losses["held-out"]
    assert [each.negative_log_likelihood for each in loss.each] == [2] * 8
    measurements.texts(sweeps, parts.append)
    assert len(parts) == 3
    assert sweeps.made == [(3, 4)]

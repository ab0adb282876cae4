"""Measurements are restored exactly, from intact segments of any attempt."""

from __future__ import annotations

import math

import pytest

from tests.unit.workers.resumption.test_checkpoints import Memory, of_attempt
from workers.evaluation.estimates import Estimate
from workers.evaluation.losses import SequenceLoss, TextLoss
from workers.evaluation.scores import Scores
from workers.resumption.journal import Journal, Measured, forms_key

LOSS = TextLoss((SequenceLoss(0.1 + 0.2, 3, 1), SequenceLoss(math.inf, 2, 0)))
SCORES = Scores(
    2,
    {"accuracy": (1.0, 0.0), "empty": ()},
    {"f1": Estimate(1 / 3, None), "bleu": Estimate(1e-300, 2 / 3)},
)
MEASURED: dict[str, Measured] = {"loss": LOSS, "scores": SCORES, "speed": 0.1, "none": 0.0}


@pytest.fixture
def bucket() -> Memory:
    return Memory()


@pytest.mark.parametrize("key", MEASURED)
def test_what_was_measured_comes_back_exactly(bucket: Memory, key: str) -> None:
    written = Journal(of_attempt(bucket, 1))
    written.put(key, MEASURED[key])
    written.flush()
    read = Journal(of_attempt(bucket, 2))
    assert read.restore() == []
    assert read.get(key) == MEASURED[key]
    assert read.get("another") is None
    assert len(read) == 1


def test_segments_add_up_over_attempts(bucket: Memory) -> None:
    for attempt, key in enumerate(MEASURED, 1):
        journal = Journal(of_attempt(bucket, attempt))
        journal.restore()
        assert len(journal) == attempt - 1
        journal.put(key, MEASURED[key])
        journal.flush()
        journal.flush()  # nothing more to write
    assert len(bucket.objects) == len(MEASURED)


def test_a_damaged_segment_is_refused_once_and_the_others_are_read(bucket: Memory) -> None:
    journal = Journal(of_attempt(bucket, 1))
    for key in ("loss", "speed"):
        journal.put(key, MEASURED[key])
        journal.flush()
    damaged = min(bucket.objects)
    bucket.objects[damaged] = bucket.objects[damaged][:-1]
    again = Journal(of_attempt(bucket, 2))
    refused = again.restore()
    assert [each.key for each in refused] == [damaged]
    assert again.get("loss") is None
    assert again.get("speed") == MEASURED["speed"]
    again.remove(refused)
    assert Journal(of_attempt(bucket, 3)).restore() == []


def test_what_could_not_be_written_is_written_later(bucket: Memory) -> None:
    journal = Journal(of_attempt(bucket, 1))
    journal.put("loss", LOSS)
    bucket.room = 0
    journal.flush()
    assert bucket.objects == {}
    assert journal.get("loss") == LOSS
    bucket.room = 1
    journal.put("speed", 0.1)
    journal.flush()
    read = Journal(of_attempt(bucket, 2))
    read.restore()
    assert len(read) == 2


def test_equal_ranks_have_one_name_and_others_another() -> None:
    assert forms_key({"q": 1, "k": None}) == forms_key({"k": None, "q": 1})
    assert forms_key({"q": 1, "k": None}) != forms_key({"q": 1, "k": 2})

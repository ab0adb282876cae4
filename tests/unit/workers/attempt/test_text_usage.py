"""Users learn what a job uses of their texts, and where it is less than they asked for."""

from __future__ import annotations

from service.domain.job import DEFAULT_TENANT, JobWarning
from service.domain.spec.evaluation import HELD_OUT
from service.store.store import Store
from tests.fixtures.jobs import small_spec
from tests.unit.service.store.test_datasets import uploaded
from workers.attempt.progress import Progress
from workers.attempt.text_usage import MAX_NAMES_IN_EVENT, note_texts, text_warnings
from workers.text.texts import RECOVERY, Texts, Usage

SKIPPED = {"rows without text": 3, "repeated documents": 1}
CALIBRATION = Usage("calibration", 40, 16, 16, 16, 16 * 64, SKIPPED)
ENOUGH = Usage("wiki", 9, 4, 4, 4, 200, {})
SHORT = Usage(HELD_OUT, 4, 4, 5, 64, 300, {})


def texts(*usage: Usage, files: int = 0, **tokens: int) -> Texts:
    names = [f"{number}.png" for number in range(files)]
    return Texts(40, [], [], names, usage, tokens)


def test_what_is_used_is_an_event_and_what_lacks_a_warning(job_store: Store) -> None:
    dataset = uploaded(job_store)
    job = job_store.users(DEFAULT_TENANT).create(small_spec())
    job_store.claims.claim()
    used = texts(CALIBRATION, SHORT, ENOUGH, **{dataset.id: 1234})
    note_texts(used, Progress(job_store, job.id, 1), DEFAULT_TENANT)
    event, warned = job_store.records.events(job.id)[-2:]
    assert (event.type, event.message) == (
        "texts.used",
        "calibration: 1,024 tokens in 16 sequences from 16 of 40 documents (skipped: 3 rows "
        "without text, 1 repeated documents); held-out: 300 tokens in 5 sequences from 4 of 4 "
        "documents; wiki: 200 tokens in 4 sequences from 4 of 9 documents.",
    )
    assert [each["text"] for each in event.data["texts"]] == ["calibration", HELD_OUT, "wiki"]
    assert event.data["texts"][0]["skipped"] == SKIPPED
    assert warned.data["asked"] == 64
    assert job_store.records.get(job.id).warnings == (
        JobWarning(
            "texts.short",
            "Perplexity on 'held-out' is measured on 5 sequences, not the 64 asked for: "
            "calibration.data has no more. Add text, or ask for fewer.",
        ),
    )
    assert job_store.datasets(DEFAULT_TENANT).get(dataset.id).tokens == 1234


def test_less_text_to_train_on_is_a_warning() -> None:
    (warning,) = text_warnings(texts(CALIBRATION, Usage(RECOVERY, 40, 40, 40, 48, 40 * 64, {})))
    assert (warning.type, warning.message) == (
        "texts.short",
        "Recovery trains on 40 sequences, not the 48 asked for: calibration.data has no more. Add "
        "text, or set recovery.epochs higher.",
    )


def test_enough_text_gives_no_warning() -> None:
    assert list(text_warnings(texts(CALIBRATION, ENOUGH))) == []


def test_skipped_files_are_a_warning_with_a_few_names() -> None:
    (warning,) = text_warnings(texts(CALIBRATION, files=1000))
    assert (warning.type, warning.message) == (
        "texts.skipped",
        "1000 files are not text and were skipped.",
    )
    assert len(warning.data["files"]) == MAX_NAMES_IN_EVENT

"""Rows become tokenized problems; every invalid row is refused with its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from pyarrow import parquet

from service.domain.spec.job import JobSpec
from service.errors import DataInvalid, DataNotFound, HarnessMissing
from service.settings import Settings
from tests.fixtures.models import byte_tokenizer
from workers.evaluation import problems
from workers.evaluation.problems import Choice, Exercise, Function, Question, read_exercises
from workers.text.sequences import sequence_prefix

TOKENIZER = byte_tokenizer(adds_bos=False)
QUESTION = {"question": "1 + 1 =", "choices": ["3", "2"], "answer": 1}
FUNCTION = {"task_id": "f", "prompt": "def f():\n", "entry_point": "f", "test": "def check(f): 0"}


def read(
    root: Path, job_spec: JobSpec, *tasks: dict[str, Any], longest: int | None = None
) -> list[Exercise]:
    body = job_spec.model_dump(mode="json") | {"evaluation": {"tasks": list(tasks)}}
    spec = JobSpec.model_validate(body)
    return read_exercises(spec, TOKENIZER, longest, Settings(allowed_roots=(root,)))


def task(file: Path, kind: str = "multiple_choice", **fields: Any) -> dict[str, Any]:
    return {"kind": kind, "name": kind, "data": {"source": "local", "path": str(file)}, **fields}


def written(folder: Path, *rows: Any) -> Path:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def text(tokens: list[int]) -> str:
    return str(TOKENIZER.decode(tokens))


def test_a_question_is_read_with_each_of_its_choices(tmp_path: Path, job_spec: JobSpec) -> None:
    (exercise,) = read(tmp_path, job_spec, task(written(tmp_path, QUESTION)))
    (question,) = exercise.problems
    assert isinstance(question, Question)
    assert question.answer == 1
    assert [text(choice.tokens) for choice in question.choices] == ["1 + 1 = 3", "1 + 1 = 2"]
    assert [(choice.scored, choice.characters) for choice in question.choices] == [(2, 1)] * 2


def test_a_sequence_begins_as_the_tokenizer_begins_one() -> None:
    bos = byte_tokenizer(adds_bos=True)
    choice = problems.encode_choice(bos, sequence_prefix(bos), "a ", "bc")
    assert choice == Choice([0, *bos("a  bc", add_special_tokens=False)["input_ids"]], 4, 2)


def test_fields_may_have_other_names(tmp_path: Path, job_spec: JobSpec) -> None:
    row = {"q": "2 + 2 =", "options": ["4", "5", "6"], "label": 0}
    names = {"question_field": "q", "choices_field": "options", "answer_field": "label"}
    table = arrow.Table.from_pylist([row, row])
    parquet.write_table(table, tmp_path / "rows.parquet")
    (exercise,) = read(tmp_path, job_spec, task(tmp_path / "rows.parquet", **names))
    assert [len(q.choices) for q in exercise.problems if isinstance(q, Question)] == [3, 3]


def test_no_more_problems_than_asked_for(tmp_path: Path, job_spec: JobSpec) -> None:
    file = written(tmp_path, QUESTION, QUESTION, {"never": "read"})
    (exercise,) = read(tmp_path, job_spec, task(file, limit=2))
    assert len(exercise.problems) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"question": " "}, "'question' is not text"),
        ({"question": 7}, "'question' is not text"),
        ({"choices": ["one"]}, "not a list of 2 to 64 texts"),
        ({"choices": "ab"}, "not a list of 2 to 64 texts"),
        ({"choices": ["a", ""]}, "not a list of 2 to 64 texts"),
        ({"choices": ["a"] * 65}, "not a list of 2 to 64 texts"),
        ({"question": "half \ud83d"}, "half a character"),
        ({"choices": ["a", "half \ud83d"]}, "half a character"),
        ({"answer": 2}, "position of a choice"),
        ({"answer": -1}, "position of a choice"),
        ({"answer": "B"}, "position of a choice"),
        ({"answer": True}, "position of a choice"),
        ({"question": "long " * 20}, "reads at most 50"),
    ],
    ids=ascii,
)
def test_a_row_that_is_no_question_is_refused(
    change: dict[str, Any], said: str, tmp_path: Path, job_spec: JobSpec
) -> None:
    file = written(tmp_path, QUESTION, QUESTION | change)
    with pytest.raises(DataInvalid, match=said) as caught:
        read(tmp_path, job_spec, task(file), longest=50)
    assert "rows.jsonl:2" in caught.value.detail
    assert caught.value.param == "evaluation.tasks.0.data"


def test_a_field_that_rows_lack_is_named(tmp_path: Path, job_spec: JobSpec) -> None:
    with pytest.raises(DataInvalid, match="has no field 'label'") as caught:
        read(tmp_path, job_spec, task(written(tmp_path, QUESTION), answer_field="label"))
    assert caught.value.param == "evaluation.tasks.0.answer_field"


@pytest.mark.parametrize("content", ["", "\n\n"], ids=["empty", "blank"])
def test_a_file_without_problems_is_refused(
    content: str, tmp_path: Path, job_spec: JobSpec
) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataInvalid, match="no problem"):
        read(tmp_path, job_spec, task(tmp_path / "rows.jsonl"))


def test_other_files_than_rows_are_refused(tmp_path: Path, job_spec: JobSpec) -> None:
    (tmp_path / "text.txt").write_text("words")
    with pytest.raises(DataInvalid, match=r"none of \.jsonl"):
        read(tmp_path, job_spec, task(tmp_path / "text.txt"))
    with pytest.raises(DataNotFound):
        read(tmp_path, job_spec, task(tmp_path / "missing"))


def test_more_problems_than_anyone_waits_for_are_refused(
    tmp_path: Path, job_spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problems, "MAX_PROBLEMS", 2)
    file = written(tmp_path, QUESTION, QUESTION, QUESTION)
    with pytest.raises(DataInvalid, match="set a limit") as caught:
        read(tmp_path, job_spec, task(file))
    assert caught.value.param == "evaluation.tasks.0.limit"


def test_a_function_is_read_with_its_tests(tmp_path: Path, job_spec: JobSpec) -> None:
    (exercise,) = read(tmp_path, job_spec, task(written(tmp_path, FUNCTION), "pass_at_1"))
    (function,) = exercise.problems
    assert isinstance(function, Function)
    assert text(function.tokens) == "def f():"  # the end of the line is the model's to write
    program = function.program("\n    return 1")
    assert program == "def f():\n    return 1\ndef check(f): 0\ncheck(f)\n"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": ""}, "'prompt' is not text"),
        ({"test": None}, "'test' is not text"),
        ({"entry_point": "f()"}, "'entry_point' is not a name"),
        ({"prompt": "x" * 90}, "it has 140 tokens"),
        ({"test": "'\ud83d'"}, "half a character"),
    ],
    ids=["prompt", "test", "entry point", "length", "surrogate"],
)
def test_a_row_that_is_no_function_is_refused(
    change: dict[str, Any], said: str, tmp_path: Path, job_spec: JobSpec
) -> None:
    file = written(tmp_path, FUNCTION | change)
    with pytest.raises(DataInvalid, match=said):
        read(tmp_path, job_spec, task(file, "pass_at_1", max_new_tokens=50), longest=100)


def test_a_missing_harness_is_found_before_anything_is_computed(
    tmp_path: Path, job_spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.evaluation.harness.find_spec", lambda _: None)
    with pytest.raises(HarnessMissing, match=r"eigenpress\[eval\]"):
        read(tmp_path, job_spec, {"kind": "lm_eval", "name": "h", "tasks": ["arc_easy"]})

"""The real lm-eval, if installed, agrees with `multiple_choice` on a local task."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.domain.spec.evaluation import LmEval
from service.domain.spec.job import JobSpec
from service.errors import DataNotFound, InvalidParameter
from service.settings import Settings
from tests.fixtures.models import save_tiny_model, tiny_llama_config
from workers.evaluation.choices import score_questions
from workers.evaluation.harness import check_harness_tasks, score_harness_task
from workers.evaluation.problems import read_exercises
from workers.model.loading import load_model
from workers.model.tokenizer import load_tokenizer

pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # of the library and what it rests on

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {file}
test_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
unsafe_code: {unsafe}
metric_list:
  - metric: acc
  - metric: acc_norm
"""
ROWS = [
    {
        "question": f"Say {number}:",
        "choices": [str(number), "nothing at all", "x" * (number + 1), "y z"],
        "answer": number % 4,
    }
    for number in range(20)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, file, unsafe in (
        ("eigenpress_quiz", rows, "false"),
        ("eigenpress_lost", folder / "missing.jsonl", "false"),
        ("eigenpress_unsafe", rows, "true"),
    ):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=file, unsafe=unsafe))
    (folder / "group.yaml").write_text("group: eigenpress_group\ntask: [eigenpress_quiz]\n")
    save_tiny_model(folder / "model", tiny_llama_config())
    return folder


@pytest.fixture
def settings(folder: Path) -> Settings:
    return Settings(allowed_roots=(folder,), lm_eval_tasks=folder)


def task(*names: str, **fields: Any) -> LmEval:
    body = {"kind": "lm_eval", "name": "harness", "tasks": list(names), **fields}
    return LmEval.model_validate(body)


def test_the_library_and_our_own_multiple_choice_agree(
    folder: Path, settings: Settings, job_spec: JobSpec
) -> None:
    import torch

    model = load_model(folder / "model", torch.device("cpu"))
    tokenizer = load_tokenizer(folder / "model")
    asked = task("eigenpress_quiz", limit=15)
    check_harness_tasks(asked, settings, "evaluation.tasks.0")
    theirs = score_harness_task(model, tokenizer, "eigenpress_quiz", asked, settings, 4)
    data = {"source": "local", "path": str(folder / "rows.jsonl")}
    quiz = {"kind": "multiple_choice", "name": "quiz", "data": data, "limit": 15}
    body = job_spec.model_dump(mode="json") | {"evaluation": {"tasks": [quiz]}}
    (exercise,) = read_exercises(JobSpec.model_validate(body), tokenizer, None, settings)
    ours = score_questions(model, exercise.problems, 4)  # type: ignore[arg-type]
    assert theirs.problems == ours.problems == 15
    assert theirs.each == {f"eigenpress_quiz/{name}": each for name, each in ours.each.items()}


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("eigenpress_nothing", InvalidParameter, "no task 'eigenpress_nothing'"),
        ("eigenpress_lost", DataNotFound, "'eigenpress_lost' cannot be loaded"),
        ("eigenpress_unsafe", InvalidParameter, "runs code that models write"),
        ("eigenpress_group", InvalidParameter, "part of both 'eigenpress_quiz' and"),
    ],
    ids=["unknown", "no data", "unsafe", "member named too"],
)
def test_what_cannot_be_measured_is_named_at_once(
    name: str, kind: type[Exception], said: str, settings: Settings
) -> None:
    with pytest.raises(kind, match=said) as caught:
        check_harness_tasks(task("eigenpress_quiz", name), settings, "evaluation.tasks.3")
    assert getattr(caught.value, "param") == "evaluation.tasks.3.tasks.1"  # noqa: B009

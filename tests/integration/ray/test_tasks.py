"""Tasks run through the real service, and all of HumanEval in the real sandbox."""

from __future__ import annotations

import gzip
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bench import demo_data
from service.domain.job import DEFAULT_TENANT
from service.domain.states import JobState
from service.errors import CodeExecutionForbidden
from tests.fixtures.in_process import LocalInstallation
from tests.fixtures.installation import Installation, ended
from workers.evaluation.sandbox import Limits, passes

QUESTIONS = [
    {"question": f"The number after {n} is", "choices": [str(n), str(n + 1), "red"], "answer": 1}
    for n in range(10)
]
FUNCTIONS = [
    {
        "task_id": f"task/{number}",
        "prompt": "def f(x):\n    return 1\n\n" if number % 2 else "def f(x):\n",
        "entry_point": "f",
        # Right whatever the model adds, if that is Python at all; wrong whatever it adds.
        "test": "def f(x):\n    return x\ndef check(f):\n    assert f(3) == " + str(3 + number % 2),
    }
    for number in range(5)
]


def lines(file: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"source": "local", "path": str(file)}


def tasks(folder: Path) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True)
    quiz = lines(folder / "quiz.jsonl", QUESTIONS)
    code = lines(folder / "code.jsonl", FUNCTIONS)
    return [
        {"kind": "multiple_choice", "name": "quiz", "data": quiz},
        {"kind": "pass_at_1", "name": "code", "data": code, "max_new_tokens": 4},
    ]


def test_tasks_are_given_to_every_model(running_installation: Installation) -> None:
    installation = running_installation
    installation.inputs.mkdir(exist_ok=True)
    evaluation = {"sequences": 4, "decode_tokens": 0, "tasks": tasks(installation.inputs)}
    spec = installation.spec(evaluation=evaluation, workers=2)
    job = installation.wait_for(installation.store.users(DEFAULT_TENANT).create(spec), ended)
    assert job.state == JobState.SUCCEEDED, job.failure
    report = installation.store.records.report(job.id)
    assert report is not None
    dense, (target,) = report["evaluation"]["dense"]["tasks"], report["targets"]
    for measured in (dense, target["tasks"]):
        assert measured["quiz"]["problems"] == 10
        assert measured["code"]["problems"] == 5
        assert set(measured["quiz"]["metrics"]) == {"acc", "acc_norm"}
        assert measured["code"]["metrics"]["pass@1"]["value"] <= 3 / 5
    assert "difference_standard_error" in target["tasks"]["quiz"]["metrics"]["acc"]
    (evaluate,) = [step for step in job.steps if step.step == "evaluate"]
    assert evaluate.done == evaluate.total


def test_code_is_not_run_where_a_node_forbids_it(local_installation: LocalInstallation) -> None:
    evaluation = {"sequences": 4, "decode_tokens": 0, "tasks": tasks(local_installation.inputs)}
    local_installation.create(evaluation=evaluation)
    with pytest.raises(CodeExecutionForbidden, match="EIGENPRESS_ALLOW_CODE_EXECUTION") as caught:
        local_installation.attempt()
    assert caught.value.param == "evaluation.tasks.1"


def test_every_canonical_solution_of_humaneval_passes_in_the_sandbox() -> None:
    with gzip.open(demo_data.problems_file(), "rt", encoding="utf-8") as rows:
        problems = [json.loads(row) for row in rows]
    programs = [
        f"{each['prompt']}{each['canonical_solution']}\n{each['test']}\ncheck({each['entry_point']})"
        for each in problems
    ]
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(lambda program: passes(program, Limits(60.0, 2**30)), programs))
    assert verdicts == [True] * demo_data.PROBLEM_COUNT

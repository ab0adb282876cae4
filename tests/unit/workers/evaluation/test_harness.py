"""Results of lm-eval are read as its documentation defines them, without the library."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from service.domain.spec.evaluation import LmEval
from service.errors import HarnessMissing, InvalidParameter
from service.settings import Settings
from workers.evaluation import harness
from workers.evaluation.estimates import Estimate, mean
from workers.evaluation.harness import (
    check_harness,
    check_harness_tasks,
    harness_scores,
    score_harness_task,
)


def sample(number: int, kept: str = "none", **metrics: Any) -> dict[str, Any]:
    return {"doc_id": number, "filter": kept, **metrics}


FOUND = {
    "results": {
        "quiz": {
            "alias": "quiz",
            "sample_len": 3,
            "acc,none": 1 / 3,
            "acc_stderr,none": 1 / 3,
            "acc,strict": 0.0,
            "f1,none": 0.4,
            "f1_stderr,none": 0.1,
            "perplexity,none": 12.5,
            "perplexity_stderr,none": "N/A",
        },
        "group": {"alias": "group", "acc,none": 0.25, "acc_stderr,none": 0.2},
    },
    "samples": {
        "quiz": [
            sample(2, acc=0.0, f1=(1, 1), perplexity=2.0),
            sample(0, acc=1.0, f1=(0, 1), perplexity=2.0),
            sample(1, acc=0.0, f1=(1, 0), perplexity=2.0),
            *(sample(number, "strict", acc=0.0) for number in range(3)),
        ]
    },
    "n-samples": {"quiz": {"original": 9, "effective": 3}},
}


def test_means_are_kept_problem_by_problem_in_their_order() -> None:
    scores = harness_scores(FOUND)
    assert scores.each == {"quiz/acc": (1.0, 0.0, 0.0), "quiz/acc,strict": (0.0, 0.0, 0.0)}
    assert scores.estimates()["quiz/acc"] == mean([1.0, 0.0, 0.0])
    assert scores.problems == 3


def test_what_is_no_mean_is_taken_as_the_library_sums_it_up() -> None:
    assert harness_scores(FOUND).summaries == {
        "quiz/f1": Estimate(0.4, 0.1),
        "quiz/perplexity": Estimate(12.5, None),
        "group/acc": Estimate(0.25, 0.2),
    }


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "find_spec", lambda _: None)
    with pytest.raises(HarnessMissing, match=r"eigenpress\[eval\]"):
        check_harness()


MEMBERS = {"group": ["easy", "hard"], "easy": ["easy"], "other": ["other"]}


class Library:
    """What is used of lm-eval: its tasks, and measuring, which ends in an error."""

    all_tasks = tuple(MEMBERS)

    def __init__(self, error: Exception) -> None:
        self._error = error

    def load(self, names: list[str]) -> dict[str, Any]:
        return {"tasks": {each: object() for name in names for each in MEMBERS[name]}}

    def simple_evaluate(self, *_: object, **__: object) -> None:
        raise self._error


@pytest.fixture
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    error = getattr(request, "param", ValueError("no such split"))
    fake = Library(error)
    for name, exported in (
        ("lm_eval", {"simple_evaluate": fake.simple_evaluate}),
        ("lm_eval.models", {}),
        ("lm_eval.models.huggingface", {"HFLM": SimpleNamespace}),
    ):
        module = ModuleType(name)
        vars(module).update(exported)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(harness, "find_spec", lambda _: True)
    monkeypatch.setattr(harness, "_manager", lambda _: fake)


def asked(*names: str) -> LmEval:
    return LmEval.model_validate({"kind": "lm_eval", "name": "h", "tasks": list(names)})


@pytest.mark.usefixtures("library")
def test_a_group_and_its_member_are_refused_before_anything_is_computed() -> None:
    check_harness_tasks(asked("group", "other"), Settings(), "evaluation.tasks.0")
    with pytest.raises(InvalidParameter, match="'easy' is part of both 'group' and") as caught:
        check_harness_tasks(asked("group", "other", "easy"), Settings(), "evaluation.tasks.0")
    assert caught.value.param == "evaluation.tasks.0.tasks.2"


@pytest.mark.usefixtures("library")
def test_what_the_library_raises_is_ours_and_names_the_task() -> None:
    with pytest.raises(InvalidParameter, match=r"'other' .* ValueError: no such split") as caught:
        score_harness_task(None, None, "other", asked("other"), Settings(), 4)
    assert caught.value.param == "evaluation.tasks"


@pytest.mark.parametrize(
    "library",
    [torch.OutOfMemoryError("full"), HarnessMissing()],
    ids=["memory", "ours"],
    indirect=True,
)
@pytest.mark.usefixtures("library")
def test_what_has_a_name_already_keeps_it() -> None:
    with pytest.raises((torch.OutOfMemoryError, HarnessMissing)):
        score_harness_task(None, None, "other", asked("other"), Settings(), 4)

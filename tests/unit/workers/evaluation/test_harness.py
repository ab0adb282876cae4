"""What lm-eval says, read as its documentation has it; the library itself need not be there."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import HarnessMissing
from workers.evaluation import harness
from workers.evaluation.estimates import Estimate, mean
from workers.evaluation.harness import check_harness, harness_scores


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

"""Sizes and qualities from one calibration, by one worker or two: real Ray, real S3.

test_killed.py checks that two runs of one job write the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.domain.job import DEFAULT_TENANT, Job
from service.domain.states import JobState
from tests.fixtures.installation import Installation, ended
from tests.fixtures.models import save_model_of_numbers
from tests.fixtures.storage import download
from workers.text.texts import read_texts

INCREASE = 0.2
TARGETS = [{"keep": 0.7}, {"max_perplexity_increase": INCREASE}]
CURVE = [0.4, 0.55]
RUNS = {"one": 1, "two": 2}
"""The same job with so many workers."""


@pytest.fixture(scope="module")
def installation(running_installation: Installation) -> Installation:
    return running_installation


@pytest.fixture(scope="module")
def jobs(installation: Installation) -> Mapping[str, Job]:
    """The job, run several times."""
    installation.inputs.mkdir(exist_ok=True)
    save_model_of_numbers(installation.inputs / "trained")
    body = {
        "model": {"source": "local", "path": str(installation.inputs / "trained")},
        "targets": TARGETS,
        "evaluation": {"sequences": 6, "decode_tokens": 0, "curve": CURVE},
    }
    created = {
        name: installation.store.users(DEFAULT_TENANT).create(
            installation.spec(**body, workers=workers)
        )
        for name, workers in RUNS.items()
    }
    return {name: installation.wait_for(job, ended) for name, job in created.items()}


def fetch(installation: Installation, job: Job, name: str, folder: Path) -> Path:
    return download(installation.settings, installation.store, job, name, folder)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()


def perplexity(model: Any, sequences: list[list[int]]) -> float:
    losses, tokens = [], 0
    for sequence in sequences:
        input_ids = torch.tensor([sequence])
        with torch.no_grad():
            logits = model(input_ids=input_ids).logits[0, :-1].double()
        losses.append(float(functional.cross_entropy(logits, input_ids[0, 1:], reduction="sum")))
        tokens += len(sequence) - 1
    return math.exp(math.fsum(losses) / tokens)


@pytest.mark.parametrize("run", RUNS)
def test_it_succeeds(jobs: Mapping[str, Job], run: str) -> None:
    assert jobs[run].state is JobState.SUCCEEDED, jobs[run].failure


def test_the_artifact_is_as_good_as_was_asked(
    installation: Installation, jobs: Mapping[str, Job], tmp_path: Path
) -> None:
    job = jobs["two"]
    artifact = load(fetch(installation, job, f"increase-{INCREASE}", tmp_path))
    trained = installation.inputs / "trained"
    tokenizer = AutoTokenizer.from_pretrained(trained)
    settings = installation.settings
    (held_out,) = read_texts(job.spec, tokenizer, settings).evaluation
    dense = perplexity(load(trained), held_out.sequences)
    assert perplexity(artifact, held_out.sequences) <= (1 + INCREASE) * dense * (1 + 1e-6)


def test_a_smaller_size_was_measured_and_is_not(
    installation: Installation, jobs: Mapping[str, Job]
) -> None:
    report = installation.store.records.report(jobs["two"].id)
    assert report is not None
    (dense,) = [point for point in report["curve"] if point["kind"] == "dense"]
    (chosen,) = [point for point in report["curve"] if point["name"] == f"increase-{INCREASE}"]
    bound = (1 + INCREASE) * dense["perplexity"]["held-out"]
    smaller = report["curve"][: report["curve"].index(chosen)]
    assert chosen["perplexity"]["held-out"] <= bound
    assert smaller[-1]["perplexity"]["held-out"] > bound
    assert smaller[-1]["linear_fraction"] > chosen["linear_fraction"] - 0.02  # a rank is much


def test_the_curve_has_the_sizes_asked_for(
    installation: Installation, jobs: Mapping[str, Job]
) -> None:
    report = installation.store.records.report(jobs["two"].id)
    assert report is not None
    fractions = [point["linear_fraction"] for point in report["curve"]]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert all(any(0.9 * keep < f <= keep for f in fractions) for keep in CURVE)
    assert {point["kind"] for point in report["curve"]} == {"dense", "target", "probe"}


@pytest.mark.parametrize("name", ["keep-0.7", f"increase-{INCREASE}"])
def test_one_worker_and_two_make_the_same_model(
    installation: Installation, jobs: Mapping[str, Job], name: str, tmp_path: Path
) -> None:
    input_ids = torch.arange(2, 66)[None]
    one, two = (
        load(fetch(installation, jobs[run], name, tmp_path / run)) for run in ("one", "two")
    )
    with torch.no_grad():
        torch.testing.assert_close(
            one(input_ids=input_ids).logits, two(input_ids=input_ids).logits, rtol=1e-5, atol=1e-5
        )

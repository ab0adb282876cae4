"""The quality benchmark runs to its end on a tiny model, and resumes after an interruption."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import quality
from bench.material import groups_of, truncated
from bench.quality_models import Laboratory, Texts, compressed
from bench.quality_rows import HELD_OUT, Contender, Row
from tests.fixtures.models import tiny_llama_config, tiny_model
from workers.compression.candidates import Storage
from workers.compression.checkpoint import replace_layers
from workers.compression.interpolation import interpolate
from workers.compression.metrics import METHODS
from workers.evaluation.text import text_loss


def sequences(count: int = 4, length: int = 64) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    drawn: list[list[int]] = torch.randint(258, (count, length), generator=generator).tolist()
    return drawn


def laboratory(methods: list[str] | None = None) -> Laboratory:
    data = sequences()
    return Laboratory(
        tiny_model(tiny_llama_config()), Texts(data, {HELD_OUT: data}), methods or list(METHODS)
    )


@pytest.fixture
def run(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs the whole benchmark, small, and returns the report."""
    monkeypatch.chdir(tmp_path)
    options = (
        f"--model {tiny_llama} --methods svd impact --keeps 0.8 0.6 --sequences 8 --length 64 "
        "--held-out 3 --problems 2 --out report"
    )
    monkeypatch.setattr(sys, "argv", ["quality", *options.split()])

    def runner() -> str:
        assert quality.main() == 0
        return (tmp_path / "report" / "quality.md").read_text()

    return runner


def test_a_run_writes_the_report_and_the_chart(run: Any, tmp_path: Path) -> None:
    text = run()

    for contender in ("svd, uniform, factors", "impact, global, interpolative"):
        assert f"| {contender} |" in text
    assert "2 sequences" in text
    assert (tmp_path / "report" / "quality.svg").read_text().startswith("<?xml")


def test_what_is_measured_is_not_measured_again(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run()

    def refuse(*_: object) -> Row:
        raise AssertionError("measured again")

    monkeypatch.setattr(Laboratory, "row", refuse)
    monkeypatch.setattr(Laboratory, "dense", refuse)
    assert run() == first


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_keeps_at_most_what_is_asked_for(method: str) -> None:
    row = laboratory([method]).row(Contender(method, "uniform", Storage.FACTORS), 0.6)

    assert 0.5 < row.kept <= 0.6
    assert row.perplexity[HELD_OUT] > 1


def test_a_model_is_itself_again_after_it_was_measured() -> None:
    lab = laboratory()
    before = lab.dense()
    contender = Contender("impact", "global", Storage.INTERPOLATIVE)

    first = lab.row(contender, 0.5)

    assert first.perplexity != before
    assert lab.dense() == before
    assert lab.row(contender, 0.5) == first


def test_the_product_is_worth_what_the_stored_layer_is() -> None:
    data = sequences()
    model = tiny_model(tiny_llama_config())
    lab = Laboratory(model, Texts(data, {HELD_OUT: data}), ["impact"])
    solutions = lab.solutions("impact")
    ranks = dict.fromkeys(solutions, 5)
    with compressed(model, solutions, ranks):
        as_product = text_loss(model, data).perplexity
    layers = {name: interpolate(truncated(model, solutions[name], 5)) for name in ranks}
    as_stored = text_loss(replace_layers(model, layers), data).perplexity

    assert len(ranks) == sum(len(group.layers) for group in groups_of(tiny_model(model.config)))
    assert as_product == pytest.approx(as_stored, rel=1e-4)

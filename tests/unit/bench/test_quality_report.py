"""The report and the chart from artificial rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import quality_chart, quality_report
from bench.quality_rows import HELD_OUT, HUMANEVAL, Contender, Row, contenders

RATES = {"svd": 40.0, "afm": 10.0, "impact": 5.0}
"""Perplexity is e^(rate · (1 − keep)), on HumanEval twice that."""


def rows() -> Iterator[Row]:
    yield Row("dense", 1.0, 1.0, 0, {HELD_OUT: 1.0, HUMANEVAL: 2.0})
    for contender in contenders(tuple(RATES)):
        for keep in (0.9, 0.8, 0.6):
            yield row(contender, keep)


def row(contender: Contender, keep: float) -> Row:
    perplexity = math.exp(RATES[contender.method] * (1 - keep))
    return Row(contender.name, keep, keep, 0, {HELD_OUT: perplexity, HUMANEVAL: 2 * perplexity})


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "model": "A model",
        "calibration": "96 sequences, 24,576 tokens",
        "default": quality_report.IMPACT_GLOBAL,
        "command": "python -m bench.quality",
        "machine": {"device": "a processor", "cores": "2"},
    } | changes


def line(text: str, beginning: str) -> list[str]:
    """The cells of the first line of a table that begins so."""
    [first, *_] = [each for each in text.splitlines() if each.startswith(f"| {beginning}")]
    return [cell.strip() for cell in first.strip("|").split("|")]


def test_perplexities_stand_by_method_and_keep() -> None:
    text = quality_report.report(list(rows()), settings())

    assert line(text, "method, ranks, storage")[1:] == ["0.9", "0.8", "0.6"]
    assert line(text, "afm, uniform, factors")[1:] == ["2.72", "7.39", "54.60"]
    assert line(text, "svd, uniform, factors")[3] == "8.9e+06"
    assert "The dense model has 1.00." in text


def test_advantages_are_those_of_the_curves() -> None:
    text = quality_report.report(list(rows()), settings())
    _, advantages = text.split("## Size advantage")

    assert line(advantages, "afm, uniform, factors")[1:] == ["+100%", "+100%", "beyond +0%"]
    assert line(advantages, "svd, uniform, factors")[1:] == [
        "beyond +300%", "beyond +100%", "beyond +0%"
    ]  # fmt: skip
    assert line(advantages, "which is the best uniform peer")[1:] == ["afm", "afm", "afm"]
    assert line(advantages, "**over the best uniform peer**")[1] == "+100%"


def test_targets_are_reached_or_not() -> None:
    text = quality_report.report(list(rows()), settings())
    _, targets = text.split("## Targets")
    ours = "impact, global, interpolative"
    advantage = f"{ours} | size advantage over afm at its"
    ratio = f"{ours} | held-out perplexity over the dense model's, keep"

    assert line(targets, f"{advantage} 0.8")[2:] == ["+55.4%", "+100%", "yes"]
    assert line(targets, f"{advantage} 0.6")[2:] == ["+55.4%", "beyond +0%", "not seen"]
    assert line(targets, f"{ratio} 0.8")[2:] == ["at most 1.18", "2.72", "no"]


def test_the_settings_are_in_the_report() -> None:
    text = quality_report.report(list(rows()), settings())

    for value in ("A model", "24,576 tokens", "`python -m bench.quality`", "a processor"):
        assert value in text
    assert "impact, global, interpolative (the default)" in text


def test_a_run_of_a_few_methods_reports_those() -> None:
    few = [row for row in rows() if row.contender.startswith(("dense", "svd"))]
    text = quality_report.report(few, settings())

    assert "svd, global, factors" in text
    assert "## Targets" not in text


def test_a_perplexity_beyond_measure_is_said_to_be_infinite() -> None:
    broken = [*rows(), Row("x, uniform, factors", 0.9, 0.9, 0, {HELD_OUT: math.inf, HUMANEVAL: 1})]
    text = quality_report.report(broken, settings())

    assert line(text, "x, uniform, factors")[1:] == ["infinite", "", ""]


def test_the_chart_is_the_same_for_the_same_rows(tmp_path: Path) -> None:
    files = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for file in files:
        quality_chart.write(list(rows()), "A model", file)

    texts = [file.read_text() for file in files]
    assert texts[0] == texts[1]
    found = {element.text for element in ElementTree.fromstring(texts[0]).iter() if element.text}
    assert {HELD_OUT, HUMANEVAL, "dense", "afm, uniform, factors"} <= found
    assert not any("date" in text.casefold() for text in found)


@pytest.mark.parametrize("factor", [0.5, 200.0])
def test_the_chart_has_room_for_any_perplexity(tmp_path: Path, factor: float) -> None:
    scaled = [
        Row(r.contender, r.keep, r.kept, 0, {HELD_OUT: 10 * factor * r.perplexity[HELD_OUT]})
        for r in rows()
    ]
    quality_chart.write(scaled, "A model", tmp_path / "chart.svg")

    assert (tmp_path / "chart.svg").stat().st_size > 1000

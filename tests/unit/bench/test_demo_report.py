from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from bench import demo, demo_report

MEASURED = ("perplexity", "accuracy", "decode_tokens_per_second")
SOURCE_BYTES = 98_000_000
KEEPS = ["keep-0.8", "keep-0.6"]
BYTES = demo.NAMES[-1]


def perplexity(held_out: float | None, humaneval: float) -> dict[str, Any]:
    return {
        "held-out": {"perplexity": held_out, "tokens": 1000, "documents": 10},
        "humaneval-64": {"perplexity": humaneval, "tokens": 1000, "documents": 64},
    }


def accuracy(held_out: float, humaneval: float) -> dict[str, Any]:
    return {
        "held-out": {"accuracy": held_out, "standard_error": 0.0123},
        "humaneval-64": {"accuracy": humaneval, "standard_error": None},
    }


def target(keep: float, held_out: float | None, linear_fraction: float) -> dict[str, Any]:
    return {
        "name": f"keep-{keep:g}",
        "keep": keep,
        "scope": "linear",
        "size": {"linear_fraction": linear_fraction, "model_fraction": 0.85, "bytes": 220_000_000},
        "perplexity": perplexity(held_out, 5.6),
        "accuracy": accuracy(0.45, 0.55),
        "decode_tokens_per_second": 20.0,
    }


def in_bytes(nbytes: int) -> dict[str, Any]:
    size = {"linear_fraction": 1.0, "model_fraction": 1.0, "bytes": nbytes}
    asked = {"name": BYTES, "bytes_fraction": 0.25, "precisions": "transformers"}
    measured = {field: target(0.8, 12.5, 1.0)[field] for field in MEASURED}
    return asked | measured | {"size": size, "perplexity": perplexity(12.5, 5.1)}


def report(**changes: Any) -> dict[str, Any]:
    dense = {
        "perplexity": perplexity(12.0, 5.0),
        "accuracy": accuracy(0.5, 0.6),
        "decode_tokens_per_second": None,
    }
    return {
        "model": {
            "architecture": "LlamaForCausalLM",
            "dtype": "float32",
            "dense_bytes": 269_000_000,
            "source_format": "gguf",
            "source_bytes": SOURCE_BYTES,
        },
        "dtype": "bfloat16",
        "method": "impact",
        "evaluation": {"dense": dense},
        "targets": [target(0.8, 12.9, 0.7999), target(0.6, 17.0, 0.5999)],
    } | changes


def shown(table: Table) -> str:
    out = io.StringIO()
    Console(file=out, width=80).print(table)
    return out.getvalue()


def numbers(text: str, label: str) -> list[str]:
    [line] = [line for line in text.splitlines() if label in line]
    return re.findall(r"[\d.]+", line.partition(label)[2])


def test_the_comparison_sets_every_size_beside_the_dense_model() -> None:
    text = shown(demo_report.comparison(report()))

    assert numbers(text, "perplexity, held-out") == ["12.00", "12.90", "17.00"]
    for value in ("80.0%", "60.0%", "85.0%", "20.0"):
        assert value in text


def test_sizes_in_one_precision_stand_beside_the_source_file() -> None:
    text = shown(demo_report.comparison(report()))

    assert numbers(text, "weights, bfloat16") == ["269", "220", "220"]
    assert numbers(text, "source file, gguf") == ["98"]
    [precisions] = [line for line in text.splitlines() if "precision of weights" in line]
    assert re.findall(r"[a-z]+\d\d", precisions) == ["float32", "bfloat16", "bfloat16"]


def test_the_demo_s_table_fits_a_terminal() -> None:
    names = zip(report()["targets"] + [in_bytes(94_000_000)], demo.NAMES, strict=True)
    targets = [each | {"name": name} for each, name in names]
    text = shown(demo_report.comparison(report(targets=targets)))

    assert "bytes-" in text
    rows = [line for line in text.splitlines() if "±" in line]
    assert len(rows) == 1  # the other text's has no standard error
    assert rows[0].count("±1.2") == 4


def test_the_comparison_has_the_accuracy_and_how_sure_it_is() -> None:
    text = shown(demo_report.comparison(report()))

    held_out = ["50.0", "1.2", "45.0", "1.2", "45.0", "1.2"]
    assert numbers(text, "accuracy %, held-out") == held_out
    assert "50.0 ±1.2" in text
    assert numbers(text, "accuracy %, humaneval-64") == ["60.0", "55.0", "55.0"]


def test_durations_are_those_of_all_steps_and_add_up() -> None:
    times = {"calibrate": ("00:00.000", "01:00.000"), "publish": ("01:01.250", "01:31.750")}
    job = {
        "steps": [
            {
                "step": name,
                "started_at": f"2026-01-01T00:{start}Z",
                "finished_at": f"2026-01-01T00:{end}Z",
            }
            for name, (start, end) in times.items()
        ]
    }
    text = shown(demo_report.durations(job))
    assert numbers(text, "calibrate") == ["60.0"]
    assert numbers(text, "publish") == ["30.5"]
    assert numbers(text, "sum") == ["90.5"]


def test_a_good_report_has_no_defects() -> None:
    assert list(demo_report.defects(report(), KEEPS)) == []


def test_a_missing_target_is_a_defect() -> None:
    [defect] = demo_report.defects(report(targets=[]), ["keep-0.8"])

    assert "keep-0.8" in defect


def test_a_model_with_infinite_perplexity_is_shown_and_is_a_defect() -> None:
    bad = report(targets=[target(0.8, None, 0.8)])

    [defect] = demo_report.defects(bad, ["keep-0.8"])

    assert "held-out" in defect
    assert "infinite" in shown(demo_report.comparison(bad))


@pytest.mark.parametrize("place", demo_report.EXPECTED_RATIOS, ids=str)
@pytest.mark.parametrize(("beyond", "count"), [(1.04, 0), (1.06, 1)])
def test_a_loss_beyond_the_expected_is_a_defect(
    place: tuple[str, str], beyond: float, count: int
) -> None:
    name, dataset = place
    measured = target(0.8, 12.0, 0.8) | {"name": name, "perplexity": perplexity(12.0, 5.0)}
    ratio = demo_report.EXPECTED_RATIOS[place] * beyond
    measured["perplexity"][dataset] = {"perplexity": 5.0 * ratio}
    lossy = report(targets=[measured])
    lossy["evaluation"]["dense"]["perplexity"][dataset] = {"perplexity": 5.0}

    found = list(demo_report.defects(lossy, [name]))

    assert len(found) == count
    assert all(f"on {dataset} is {ratio:.3f} times" in defect for defect in found)


def test_every_target_of_the_demo_has_expected_ratios_on_its_texts() -> None:
    texts = ("held-out", "humaneval-64", "humaneval-164")

    places = {(name, text) for name in demo.NAMES for text in texts}
    assert set(demo_report.EXPECTED_RATIOS) == places


@pytest.mark.parametrize(("nbytes", "count"), [(SOURCE_BYTES - 1, 0), (SOURCE_BYTES, 1)])
def test_a_target_in_bytes_that_is_no_smaller_than_the_source_file_is_a_defect(
    nbytes: int, count: int
) -> None:
    found = list(demo_report.defects(report(targets=[in_bytes(nbytes)]), [BYTES]))

    assert len(found) == count
    assert all("the source file 98,000,000" in defect for defect in found)


def test_a_text_without_an_expected_ratio_has_no_bound() -> None:
    lost = target(0.8, 12.0, 0.8)
    lost["perplexity"] = {"mine": {"perplexity": 1e9}}
    dense = {"perplexity": {"mine": {"perplexity": 2.0}}, "decode_tokens_per_second": None}

    report_of_it = report(targets=[lost], evaluation={"dense": dense})

    assert list(demo_report.defects(report_of_it, ["keep-0.8"])) == []


def test_an_artifact_larger_than_asked_for_is_a_defect() -> None:
    bad = report(targets=[target(0.8, 12.9, 0.81)])

    [defect] = demo_report.defects(bad, ["keep-0.8"])

    assert "0.81" in defect

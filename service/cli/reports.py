"""A job's report at a terminal: the dense model and every artifact, side by side.

Pure functions of the report's JSON. A report of another version may lack a field: its row is left
out, or its cell is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from service.quantities import duration, size_text
from service.report.fields import Part, at, names


def view(report: Part) -> RenderableType:
    """The table of measurements, and a line on what they rest on."""
    targets: Sequence[Part] = report.get("targets") or ()
    dense = {
        **(at(report, "evaluation", "dense") or {}),
        "size": {
            "parameters": at(report, "model", "parameters"),
            "model_fraction": 1.0,
            "linear_fraction": 1.0,
            "bytes": at(report, "model", "dense_bytes"),
        },
    }
    models = [dense, *targets]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for name in ("dense", *(str(target.get("name")) for target in targets)):
        table.add_column(Text(name), justify="right", no_wrap=True)
    for label, cell in _rows(models):
        cells = [cell(model) for model in models]
        if any(cells):
            table.add_row(Text(label), *map(Text, cells))
    return Group(_heading(report), table, _footing(report))


def _rows(models: Sequence[Part]) -> Iterator[tuple[str, Callable[[Part], str]]]:
    yield "parameters", _cell("{:,}".format, "size", "parameters")
    yield "of all", _cell("{:.1%}".format, "size", "model_fraction")
    yield "of the compressible", _cell("{:.1%}".format, "size", "linear_fraction")
    yield "weights", _cell(size_text, "size", "bytes")
    for text in names(models, "perplexity"):
        yield f"perplexity, {text}", _cell("{:.3f}".format, "perplexity", text, "perplexity")
        yield "  of the dense one's", _cell("{:.3f}×".format, "perplexity", text, "ratio")
    for text in names(models, "accuracy"):
        yield f"accuracy, {text}", _cell("{:.2%}".format, "accuracy", text, "accuracy")
    for task in names(models, "tasks"):
        for metric in names([at(model, "tasks", task) or {} for model in models], "metrics"):
            yield (
                f"{task}, {metric}",
                _cell("{:.3f}".format, "tasks", task, "metrics", metric, "value"),
            )
    yield "tokens per second", _cell("{:.1f}".format, "decode_tokens_per_second")


def _cell(shown: Callable[[Any], str], *path: str) -> Callable[[Part], str]:
    """What shows the number at a path of a model; nothing where there is none."""

    def cell(model: Part) -> str:
        value = at(model, *path)
        return "" if value is None else shown(value)

    return cell


def _heading(report: Part) -> Text:
    name = at(report, "job", "name") or at(report, "job", "id") or ""
    facts = (at(report, "model", "architecture"), report.get("method"), report.get("dtype"))
    text = Text(str(name), "bold")
    return text.append(f"  {', '.join(str(fact) for fact in facts if fact)}\n", "not bold")


def _footing(report: Part) -> Text:
    tokens, seconds = at(report, "calibration", "tokens"), report.get("seconds") or {}
    text = Text()
    if tokens is not None:
        text.append(f"\nCalibrated on {tokens:,} tokens; the job took ")
        text.append(f"{duration(timedelta(seconds=sum(seconds.values())))} without publishing.")
    return text

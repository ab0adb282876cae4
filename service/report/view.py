"""What a report says, ready for templates: words, tables and the data of pictures.

Pure functions of report.json. A report of another version may lack a field: what needs it is left
out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

from service.domain.states import Step
from service.quantities import duration, size_text
from service.report.fields import Part, at, names
from service.report.pictures import (
    Chart,
    Heatmap,
    curve,
    importance,
    kept_by_block,
    recovery,
    spectra,
)

TEXTS_IN_VERDICT = 3


@dataclass(frozen=True)
class Verdict:
    """What was gained and lost by one artifact, in a sentence."""

    name: str
    text: str


@dataclass(frozen=True)
class Cell:
    """A number as text, and the standard error or the difference beside it."""

    text: str
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A measure of the dense model and of every artifact."""

    label: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Table:
    """Rows under one heading; the columns are the models."""

    heading: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Continued:
    """A prompt, and what each model has written after it."""

    prompt: str
    written: tuple[tuple[str, str], ...]
    """By model."""


@dataclass(frozen=True)
class ReportView:
    """A job's report."""

    report: Part
    title: str
    verdicts: tuple[Verdict, ...]
    remark: str | None
    """Of the source's own size, where it is no plain checkpoint."""
    models: tuple[str, ...]
    """The columns of the tables: the dense model, and the artifacts."""
    tables: tuple[Table, ...]
    curve: Chart | None
    recovery: Chart | None
    kept: tuple[Heatmap, ...]
    """By artifact."""
    importance: tuple[Chart, ...]
    """By kind of layer, as are the spectra."""
    spectra: tuple[Chart, ...]
    continued: tuple[Continued, ...]
    settings: tuple[tuple[str, str], ...]
    specification: Mapping[str, Any] | None
    """The body of a request that makes it again."""

    @classmethod
    def of(cls, report: Part) -> Self:
        targets: Sequence[Part] = report.get("targets") or ()
        return cls(
            report=report,
            title=str(at(report, "job", "name") or at(report, "job", "id") or "Report"),
            verdicts=tuple(_verdict(report, target) for target in targets),
            remark=_remark(report),
            models=("dense", *(str(target.get("name")) for target in targets)),
            tables=tuple(_tables(report, targets)),
            curve=curve(report, targets),
            recovery=recovery(targets),
            kept=tuple(filter(None, map(kept_by_block, targets))),
            importance=importance(report.get("spectra") or ()),
            spectra=spectra(report.get("spectra") or ()),
            continued=tuple(_continued(report, targets)),
            settings=tuple(_settings(report, targets)),
            specification=at(report, "job", "specification"),
        )


def _verdict(report: Part, target: Part) -> Verdict:
    return Verdict(str(target.get("name")), "; ".join(_findings(report, target)) + ".")


def _remark(report: Part) -> str | None:
    size = at(report, "model", "source_bytes")
    if at(report, "model", "source_format") != "gguf" or not size:
        return None
    return (
        f"The source is a GGUF file of {size_text(size)}, which holds the dense model in few bits; "
        f"the sizes above are beside all of its parameters in {report.get('dtype')}."
    )


def _findings(report: Part, target: Part) -> Iterator[str]:
    made, dense = at(target, "size", "bytes"), at(report, "model", "dense_bytes")
    if made and dense:
        yield f"{made / dense:.0%} of the size: {size_text(made)} instead of {size_text(dense)}"
    ratios = [
        (text, ratio)
        for text in names([target], "perplexity")
        if (ratio := at(target, "perplexity", text, "ratio")) is not None
    ]
    for text, ratio in ratios[:TEXTS_IN_VERDICT]:
        words, before = _change(ratio), _change_as_cut(report, target, text)
        cut = f" ({before} before recovery)" if before not in (None, words) else ""
        yield f"perplexity {words} on {text}{cut}"
    before = at(report, "evaluation", "dense", "decode_tokens_per_second")
    after = at(target, "decode_tokens_per_second")
    if before and after:
        yield f"writes text at {after / before:.2f} of the original's speed"


def _change_as_cut(report: Part, target: Part, text: str) -> str | None:
    before = at(target, "recovery", "perplexity_before", text)
    dense = at(report, "evaluation", "dense", "perplexity", text, "perplexity")
    return _change(before / dense) if before and dense else None


def _change(ratio: float) -> str:
    """A ratio in words; a change below half a per cent is none that one would notice."""
    if abs(ratio - 1) < 0.005:
        return "unchanged"
    return f"{abs(ratio - 1):.0%} {'higher' if ratio > 1 else 'lower'}"


def _tables(report: Part, targets: Sequence[Part]) -> Iterator[Table]:
    dense: Mapping[str, Any] = {
        **(at(report, "evaluation", "dense") or {}),
        "size": {
            "parameters": at(report, "model", "parameters"),
            "model_fraction": 1.0,
            "linear_fraction": 1.0,
            "linear_bytes_fraction": 1.0,
            "bytes": at(report, "model", "dense_bytes"),
        },
    }
    models = [dense, *targets]
    for heading, rows in (
        ("Size", _sizes(models)),
        ("Quality", _qualities(models)),
        ("Recovery", _recoveries(models)),
        ("Speed and proof", _speeds(models)),
    ):
        shown = tuple(row for row in rows if any(row.cells))
        if shown:
            yield Table(heading, shown)


def _sizes(models: Sequence[Part]) -> Iterator[Row]:
    yield _row("weights", models, "{}", "size", "bytes", shown=size_text)
    yield _row("parameters", models, "{:,}", "size", "parameters")
    yield _row("of all parameters", models, "{:.1%}", "size", "model_fraction")
    yield _row("of the compressible ones", models, "{:.1%}", "size", "linear_fraction")
    yield _row("of their bytes in 16 bits", models, "{:.1%}", "size", "linear_bytes_fraction")


def _qualities(models: Sequence[Part]) -> Iterator[Row]:
    for measure, change, shown in (
        ("perplexity", "ratio", "{:.3f}×"),
        ("accuracy", "difference", "{:+.2%}"),
    ):
        number = "{:.3f}" if measure == "perplexity" else "{:.2%}"
        for text in names(models, measure):
            yield _row(
                f"{measure}, {text}",
                models,
                number,
                measure,
                text,
                measure,
                change=(change, shown),
            )
    for task in names(models, "tasks"):
        for metric in names([at(model, "tasks", task) or {} for model in models], "metrics"):
            yield _row(
                f"{task}, {metric}",
                models,
                "{:.3f}",
                "tasks",
                task,
                "metrics",
                metric,
                "value",
                change=("difference", "{:+.3f}"),
            )


def _recoveries(models: Sequence[Part]) -> Iterator[Row]:
    for text in names([at(model, "recovery") or {} for model in models], "perplexity_before"):
        yield _row(
            f"perplexity before recovery, {text}",
            models,
            "{:.3f}",
            "recovery",
            "perplexity_before",
            text,
        )
    yield _row("divergence before recovery", models, "{:.4f}", "recovery", "divergence_before")
    yield _row("divergence after recovery", models, "{:.4f}", "recovery", "divergence_after")
    yield _row("steps of training", models, "{:,}", "recovery", "steps")
    yield _row("weights are those after step", models, "{:,}", "recovery", "kept_step")
    yield _row("time of training", models, "{}", "recovery", "seconds", shown=_seconds)


def _speeds(models: Sequence[Part]) -> Iterator[Row]:
    yield _row("tokens written per second", models, "{:.1f}", "decode_tokens_per_second")
    yield _row("predicted loss increase, nats", models, "{:.3g}", "predicted_loss_increase")
    yield _row("logits differ from the proof's by", models, "{:.1g}", "proof", "logit_error")


def _row(
    label: str,
    models: Sequence[Part],
    number: str,
    *path: str,
    shown: Any = None,
    change: tuple[str, str] | None = None,
) -> Row:
    """The number at a path of each model; with `change`, its difference and standard error."""

    def cell(model: Part) -> Cell | None:
        value = at(model, *path)
        if value is None:
            return None
        text = shown(value) if shown else number.format(value)
        return Cell(text, _note(at(model, *path[:-1]), change) if change else "")

    return Row(label, tuple(map(cell, models)))


def _note(measured: Any, change: tuple[str, str]) -> str:
    name, shown = change
    value, error = at(measured, name), at(measured, f"{name}_standard_error")
    if value is None:
        error = at(measured, "standard_error")
    texts = ["" if value is None else shown.format(value)]
    if error is not None:
        texts.append(f"± {error:.2%}" if shown.endswith("%}") else f"± {error:.2g}")
    return " ".join(filter(None, texts))


def _seconds(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    return duration(timedelta(seconds=seconds))


def _continued(report: Part, targets: Sequence[Part]) -> Iterator[Continued]:
    models = [("dense", at(report, "evaluation", "dense") or {})]
    models += [(str(target.get("name")), target) for target in targets]
    for number, prompt in enumerate(at(report, "evaluation", "prompts") or ()):
        written = [
            (name, str(texts[number]))
            for name, model in models
            if len(texts := model.get("continuations") or ()) > number
        ]
        yield Continued(str(prompt), tuple(written))


def _settings(report: Part, targets: Sequence[Part]) -> Iterator[tuple[str, str]]:
    """What one needs to know to make it again."""
    model, calibration = report.get("model") or {}, report.get("calibration") or {}
    source = model.get("source") or {}
    if source:
        place = next((source[key] for key in ("path", "uri", "id") if key in source), "")
        if source.get("revision"):
            place = f"{place} at {source['revision']}"
        yield "model", f"{place} ({model.get('architecture')}, {model.get('dtype')})"
    if model.get("source_bytes"):
        form = "GGUF file" if model.get("source_format") == "gguf" else "checkpoint"
        yield "source", f"{form} of {size_text(model['source_bytes'])}"
    for name in ("method", "allocation", "dtype", "mixed_precision"):
        if report.get(name) is not None:
            yield name.replace("_", " "), str(report[name])
    steps = next(filter(None, (at(each, "recovery", "steps") for each in targets)), None)
    if steps is not None:
        yield "recovery", f"{steps:,} steps for each target"
    if {"sequences", "sequence_length", "documents"} <= calibration.keys():
        yield (
            "calibration",
            f"{calibration['sequences']:,} sequences of {calibration['sequence_length']:,} tokens "
            f"from {calibration['documents']:,} documents",
        )
    for name, version in (report.get("versions") or {}).items():
        yield name, str(version)
    seconds = report.get("seconds") or {}
    if seconds:
        order = [*Step, *seconds]  # those of another version last
        steps = sorted(seconds, key=order.index)
        parts = ", ".join(f"{step} {_seconds(seconds[step])}" for step in steps)
        yield "time", f"{_seconds(sum(seconds.values()))}: {parts}"

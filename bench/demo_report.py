"""Tables of a job and its report for the demo's readers, and a list of the report's defects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from rich.table import Table

Report = dict[str, Any]
Job = Mapping[str, Any]  # as the API shows it

SIZE_TOLERANCE = 1e-9

# The perplexity of a target over that of the dense model, by its name and the text. The default
# method reached these with the demo's 24,576 calibration tokens; a larger ratio is a defect.
EXPECTED_RATIOS = {
    ("keep-0.8", "held-out"): 1.084,
    ("keep-0.8", "humaneval-64"): 1.142,
    ("keep-0.8", "humaneval-164"): 1.134,
    ("keep-0.6", "held-out"): 1.463,
    ("keep-0.6", "humaneval-64"): 1.719,
    ("keep-0.6", "humaneval-164"): 1.694,
    ("bytes-0.25-transformers-embeddings-8", "held-out"): 1.062,
    ("bytes-0.25-transformers-embeddings-8", "humaneval-64"): 1.036,
    ("bytes-0.25-transformers-embeddings-8", "humaneval-164"): 1.037,
}
RATIO_TOLERANCE = 0.05


def comparison(report: Report) -> Table:
    """A table of the dense model and every compressed one, 80 columns wide.

    It shows perplexity, next-token accuracy, measures of size, and speed. Numbers after ± are
    standard errors. Sizes of weights are in the artifacts' precision, the dense model's as well;
    the file that it came from has a row of its own.
    """
    source, targets = report["model"], report["targets"]
    models = [report["evaluation"]["dense"], *targets]
    table = Table(title=f"{source['architecture']}, {report['method']}", title_style="bold")
    table.add_column()
    for name in ["dense", *(target["name"] for target in targets)]:
        table.add_column(name.partition("-transformers")[0], justify="right")  # for want of room
    table.add_row("precision of weights", source["dtype"], *[report["dtype"]] * len(targets))
    for dataset in models[0]["perplexity"]:
        values = [model["perplexity"][dataset]["perplexity"] for model in models]
        table.add_row(f"perplexity, {dataset}", *(_shown(value, "infinite", 2) for value in values))
    for dataset in models[0]["accuracy"]:
        table.add_row(
            f"accuracy %, {dataset}", *(_accuracy(model["accuracy"][dataset]) for model in models)
        )
    table.add_section()
    for label, field in (("linear", "linear_fraction"), ("all", "model_fraction")):
        fractions = [f"{target['size'][field]:.1%}" for target in targets]
        table.add_row(f"{label} parameters kept", "100.0%", *fractions)
    sizes = [source["dense_bytes"], *(target["size"]["bytes"] for target in targets)]
    table.add_row(f"weights, {report['dtype']}", *map(_megabytes, sizes))
    table.add_row(f"source file, {source['source_format']}", _megabytes(source["source_bytes"]))
    table.add_section()
    speeds = [model["decode_tokens_per_second"] for model in models]
    table.add_row("tokens per second", *(_shown(speed, "-", 1) for speed in speeds))
    return table


def durations(job: Job) -> Table:
    """A table of the time that each step of an ended job took, including publication."""
    seconds = {
        step["step"]: (_time(step["finished_at"]) - _time(step["started_at"])).total_seconds()
        for step in job["steps"]
    }
    table = Table(title="Seconds per step", title_style="bold", show_footer=True)
    table.add_column("step", footer="sum")
    table.add_column("seconds", justify="right", footer=f"{sum(seconds.values()):.1f}")
    for step, duration in seconds.items():
        table.add_row(step, f"{duration:.1f}")
    return table


def defects(report: Report, expected: list[str]) -> Iterator[str]:
    """The defects of the report, each of which makes the demo fail."""
    names = [target["name"] for target in report["targets"]]
    if names != expected:
        yield f"the report is about {names}, not {expected}"
    models = {"dense": report["evaluation"]["dense"]}
    models |= {target["name"]: target for target in report["targets"]}
    for name, model in models.items():
        for dataset, measured in model["perplexity"].items():
            if measured["perplexity"] is None:
                yield f"{name}: the perplexity on {dataset} overflows"
    for target in report["targets"]:
        yield from _excess(target, report["model"]["source_bytes"])
        yield from _losses(target, models["dense"])


def _excess(target: Report, source_bytes: int) -> Iterator[str]:
    """How the target is larger than it should be; one in bytes is smaller than the source."""
    name, size = target["name"], target["size"]
    if "keep" in target:
        if size["linear_fraction"] > target["keep"] + SIZE_TOLERANCE:
            yield f"{name}: keeps {size['linear_fraction']:.4f} of the linear parameters"
    elif size["bytes"] >= source_bytes:
        yield f"{name}: has {size['bytes']:,} bytes, the source file {source_bytes:,}"


def _losses(target: Report, dense: Report) -> Iterator[str]:
    """The texts on which the target has lost more than expected."""
    for dataset, measured in target["perplexity"].items():
        before, after = dense["perplexity"][dataset]["perplexity"], measured["perplexity"]
        bound = EXPECTED_RATIOS.get((target["name"], dataset))
        if before and after and bound and after / before > bound * (1 + RATIO_TOLERANCE):
            yield (
                f"{target['name']}: the perplexity on {dataset} is {after / before:.3f} times that "
                f"of the dense model; {bound:.3f} times is expected"
            )


def _accuracy(measured: Report) -> str:
    value, error = measured["accuracy"], measured["standard_error"]
    return f"{100 * value:.1f}" + ("" if error is None else f" ±{100 * error:.1f}")


def _time(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"


def _shown(number: float | None, absent: str, digits: int) -> str:
    return absent if number is None else f"{number:.{digits}f}"

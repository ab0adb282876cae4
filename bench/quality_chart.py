"""Draws perplexity by the fraction kept, as an SVG that is reproducible from the same rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.quality_report import curves
from bench.quality_rows import OURS, PEERS, Row
from workers.compression.candidates import Storage

LARGEST_RATIO = 100
"""Only the tables show perplexities above this multiple of the dense model's."""

COLOURS = dict(
    zip(
        (*PEERS, *OURS),
        ("#999999", "#8c564b", "#e69f00", "#009e73", "#56b4e9", "#d55e00", "#0072b2"),
        strict=True,
    )
)
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "eigenpress",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
}


def write(rows: Sequence[Row], model: str, path: Path) -> None:
    """One panel for every text; `rows` begin with the dense model."""
    dense, *compressed = rows
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13, 6.5), layout="constrained")
        figure.suptitle(f"{model}: perplexity by what is kept")
        panels = figure.subplots(1, len(dense.perplexity), squeeze=False)[0]
        for axes, text in zip(panels, dense.perplexity, strict=True):
            _draw(axes, dense, compressed, text)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw(axes: Axes, dense: Row, rows: Sequence[Row], text: str) -> None:
    limit = dense.perplexity[text] * LARGEST_RATIO
    for name, points in curves(rows, text).items():
        method, allocation, storage = name.split(", ")
        shown = [point for point in points.values() if point.perplexity <= limit]
        axes.plot(
            [point.kept for point in shown],
            [point.perplexity for point in shown],
            label=name,
            color=COLOURS[method],
            linestyle="-" if allocation == "global" else ":",
            linewidth=2.2 if method in OURS else 1.3,
            marker="o" if storage == Storage.INTERPOLATIVE.value else "x",
            markersize=5,
        )
    axes.axhline(dense.perplexity[text], color="black", linewidth=1, linestyle="--", label="dense")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(_ticks(dense.perplexity[text], limit))
    axes.set_title(text)
    axes.set_xlabel("linear parameters kept")
    axes.set_ylabel("perplexity")
    axes.invert_xaxis()
    axes.grid(alpha=0.3)


def _ticks(least: float, most: float) -> mpl.ticker.FixedLocator:
    """1, 2 and 5 times the powers of ten."""
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    return mpl.ticker.FixedLocator([tick for tick in ticks if least / 2 <= tick <= most])

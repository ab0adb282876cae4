"""An estimate at a terminal: tables of sizes and times, and what is wrong or not known.

Pure functions of the API's JSON.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from service.cli.rendering import Answer
from service.quantities import duration, size_text

NOT_KNOWN = "?"


def view(estimate: Answer) -> RenderableType:
    """All of an estimate: its sizes, workers, times, problems, and what it does not know."""
    parts = (_sizes(estimate), _workers(estimate), _times(estimate), *_notes(estimate))
    return Group(*(part for part in parts if part is not None))


def _sizes(estimate: Answer) -> Table | None:
    model = estimate["model"]
    if model is None:
        return None
    table = _table("ARTIFACT", "PARAMETERS", "OF ALL", "BYTES", "OF ALL")
    dense = {"parameters": model["parameters"], "bytes": model["dense_bytes"]}
    for name, size in (("dense", dense), *((t["name"], t["size"]) for t in estimate["targets"])):
        cells = [NOT_KNOWN] * 4
        if size is not None:
            cells = [
                f"{size['parameters']:,}",
                f"{size['parameters'] / dense['parameters']:.1%}",
                size_text(size["bytes"]),
                f"{size['bytes'] / dense['bytes']:.1%}",
            ]
        table.add_row(Text(name), *cells)
    return table


def _workers(estimate: Answer) -> Text:
    workers, memory, driver = estimate["workers"], estimate["memory"], estimate["driver_memory"]
    text = Text(f"\nCalibrates on {estimate['tokens']:,} tokens")
    if workers is not None:
        each = "a GPU and " if workers["gpus"] else ""
        text.append(f", with {workers['workers']} workers of {each}{workers['cpus']} CPUs")
    text.append(".")
    if memory is not None:
        gpu, files = memory["worker_gpu"], memory["worker_files"]
        text.append(f"\nA worker takes up to {size_text(memory['worker'])} of memory")
        text.append(f", {size_text(gpu)} of its GPU" if gpu is not None else "")
        text.append(f" and {size_text(files)} of disk.")
        for step, lacking in memory["too_little"].items():
            text.append(f"\n{step}: too little of {', '.join(lacking)}", "red")
    if driver is not None:
        text.append(f"\nThe driver takes up to {size_text(driver)} of memory.")
    if estimate["waits"]:
        text.append(f"\nIt would wait: {estimate['waits']}", "yellow")
    return text.append("\n")


def _times(estimate: Answer) -> Table | None:
    seconds = estimate["seconds"]
    if seconds is None:
        return None
    table = _table("STEP", "TAKES", "WAITS FOR")
    for step in seconds["steps"]:
        table.add_row(step["step"], _time(step["seconds"]), step["waits_for"])
    jobs = seconds["measured_jobs"]
    table.add_row("all", _time(seconds["sum"]), f"corrected; measured jobs: {jobs}" if jobs else "")
    return table


def _notes(estimate: Answer) -> Iterator[Text]:
    for problem in estimate["problems"]:
        where = ", ".join(part for part in (problem["code"], problem["param"]) if part)
        yield Text("\nProblem: ", "bold red").append(f"{problem['detail']}\n{where}", "not bold")
    if estimate["unknown"]:
        yield Text("\nNot known", "bold")
    for each in estimate["unknown"]:
        yield Text(f"{each['field']}: ", "dim").append(each["reason"])


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=True, justify="right" if number else "left")
    return table


def _time(seconds: float) -> str:
    return duration(timedelta(seconds=seconds)) if seconds >= 1 else "< 1 s"

"""Writes the results of the scenarios into docs/reliability.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from tests.chaos.scenarios import Outcome

DOCUMENT = Path("docs/reliability.md")
BEGIN, END = "<!-- begin: make test-chaos -->", "<!-- end: make test-chaos -->"
WIDTH = 120


def write_document(results: Path, names: Sequence[str], document: Path = DOCUMENT) -> None:
    """Put the tables between the document's markers; the rest does not change."""
    outcomes = {
        name: json.loads((results / f"{name}.json").read_text())
        for name in names
        if (results / f"{name}.json").exists()
    }
    before, rest = document.read_text().split(BEGIN)
    after = rest.split(END)[1]
    document.write_text(f"{before}{BEGIN}\n\n{tables(outcomes, names)}\n{END}{after}")


def tables(outcomes: dict[str, Outcome], names: Sequence[str]) -> str:
    """One entry per scenario, including those that have not been run, then the kills."""
    scenarios = "\n".join(_scenario(name, outcomes.get(name)) for name in names)
    machines = {(outcome["machine"], outcome["date"]) for outcome in outcomes.values()}
    measured = "; ".join(f"{machine}, {date}" for machine, date in sorted(machines))
    parts = [scenarios, f"Measured on: {measured}."]
    parts += [
        _kills(outcomes[name])
        for name in ("kills", "kills-smollm2")
        if outcomes.get(name, {}).get("rows")
    ]
    return "\n\n".join(parts) + "\n"


def _scenario(name: str, outcome: Outcome | None) -> str:
    if outcome is None:
        return f"- `{name}`: not yet run in full."
    figures = ", ".join(f"{value} {label}" for label, value in outcome["figures"].items())
    seeds = "" if outcome["seeds"] == "-" else f", seeds {outcome['seeds']}"
    took = f"{outcome['seconds'] // 60} min {outcome['seconds'] % 60} s"
    problems = len(outcome["problems"]) or "none"
    text = f"- `{name}`{seeds}: {figures}. Problems: {problems}. Time: {took}."
    return fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _kills(outcome: Outcome) -> str:
    """The seconds from submission to success and to the base line, by process and step."""
    head = [
        "| process | step | attempts | succeeded after | at the base line after |",
        "|---|---|---|---|---|",
    ]
    rows = [
        f"| {row['victim']} | {row['step']} | {row['attempts']} "
        f"| {row['job_seconds']} s | {row['settle_seconds']} s |"
        for row in outcome["rows"]
    ]
    return f"{outcome['title']}\n\n" + "\n".join(head + rows)

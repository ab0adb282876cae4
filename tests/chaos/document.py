"""The tables of docs/reliability.md, from the figures that the scenarios left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.scenarios import Outcome

DOCUMENT = Path("docs/reliability.md")
BEGIN, END = "<!-- begin: make test-chaos -->", "<!-- end: make test-chaos -->"


def write_document(results: Path, names: Sequence[str], document: Path = DOCUMENT) -> None:
    """Put the tables between the document's markers; what lies around them stays."""
    outcomes = {
        name: json.loads((results / f"{name}.json").read_text())
        for name in names
        if (results / f"{name}.json").exists()
    }
    before, rest = document.read_text().split(BEGIN)
    after = rest.split(END)[1]
    document.write_text(f"{before}{BEGIN}\n\n{tables(outcomes, names)}\n{END}{after}")


def tables(outcomes: dict[str, Outcome], names: Sequence[str]) -> str:
    """One row per scenario, also of those that have not been run, then the matrix of kills."""
    rows = ["| scenario | seeds | figures | problems | time |", "|---|---|---|---|---|"]
    for name in names:
        if name not in outcomes:
            rows.append(f"| `{name}` | | not yet run in full | | |")
            continue
        outcome = outcomes[name]
        figures = ", ".join(f"{value} {label}" for label, value in outcome["figures"].items())
        seconds = outcome["seconds"]
        took = f"{seconds // 60} min {seconds % 60} s"
        problems = len(outcome["problems"]) or "none"
        rows.append(f"| `{name}` | {outcome['seeds']} | {figures} | {problems} | {took} |")
    machines = {(outcome["machine"], outcome["date"]) for outcome in outcomes.values()}
    measured = "; ".join(f"{machine}, {date}" for machine, date in sorted(machines))
    parts = ["\n".join(rows), f"Measured on: {measured}."]
    parts += [
        _kills(outcomes[name])
        for name in ("kills", "kills-smollm2")
        if outcomes.get(name, {}).get("rows")
    ]
    return "\n\n".join(parts) + "\n"


def _kills(outcome: Outcome) -> str:
    """Seconds from submission to success, and back to the base line, by process and step."""
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

"""The jobs on the pictures of the web page, as if they had run on SmolLM2.

Their perplexities and what recovery takes are those of docs/quality.md and docs/recovery.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from service.domain.job import DEFAULT_TENANT, EventType
from service.domain.placement import Placement
from service.domain.prediction import PREDICTED, Prediction
from service.domain.spec.job import JobSpec
from service.domain.states import Step
from service.errors import CalibrationTooShort
from service.store import tables
from service.store.store import Store
from tests.fixtures.jobs import at_once

QUALITY, RECOVERY = Path("docs/quality.md"), Path("docs/recovery.md")
LINEAR, PARAMETERS = 106_168_320, 134_515_008
"""The model's parameters: of its linear layers, and all."""
SUCCEEDED = {
    "smollm2-kron": ("impact-kron, global, interpolative", "impact-kron"),
    "smollm2-impact": ("impact, global, interpolative", "impact"),
    "smollm2-svd-llm": ("svd-llm, uniform, factors", "svd-llm"),
}
"""Jobs that have succeeded: their rows in docs/quality.md, and their methods."""
RECOVERED = "smollm2-recovered"
RUNNING = "smollm2-code"
STEPS = 58
"""Of a recovery."""
KEEPS = (0.9, 0.8, 0.7, 0.6)
UNITS: Mapping[Step, tuple[int, str]] = {
    Step.RESOLVE: (1, "models"),
    Step.CALIBRATE: (96, "sequences"),
    Step.SOLVE: (210, "layers"),
    Step.ALLOCATE: (3, "targets"),
    Step.RECOVER: (3 * STEPS, "steps"),
    Step.ASSEMBLE: (3, "artifacts"),
    Step.PROVE: (3, "artifacts"),
    Step.EVALUATE: (4, "models"),
    Step.PUBLISH: (3, "artifacts"),
}
SECONDS: Mapping[str, float] = {
    Step.RESOLVE: 14,
    Step.CALIBRATE: 93,
    Step.SOLVE: 22,
    Step.ALLOCATE: 1,
    Step.RECOVER: 860,
    Step.ASSEMBLE: 19,
    Step.PROVE: 13,
    Step.EVALUATE: 104,
    Step.PUBLISH: 4,
}
"""How long a step takes; a check of a recovery, too."""
CHECKED = "recovery.checked"


def seed(store: Store, inputs: Path) -> dict[str, str]:
    """Jobs of all kinds, the newest last; their ids by their names."""
    users = store.users(DEFAULT_TENANT)
    ids: dict[str, str] = {}

    def make(name: str, **fields: Any) -> str:
        body = {
            "name": name,
            "model": {"source": "local", "path": str(inputs / "smollm2-135m")},
            "calibration": {
                "data": {"source": "local", "path": str(inputs / "code")},
                "sequences": UNITS[Step.CALIBRATE][0],
                "sequence_length": 256,
            },
            "targets": [{"keep": keep} for keep in KEEPS],
        }
        ids[name] = users.create(JobSpec.model_validate(body | fields)).id
        return ids[name]

    def begin(name: str, **fields: Any) -> str:
        made = make(name, **fields)
        store.claims.claim()
        return made

    ml, search = {"team": "ml"}, {"team": "search"}
    for name, (row, method) in SUCCEEDED.items():
        allocation = "uniform" if "uniform" in row else "global"
        made = begin(name, method=method, allocation=allocation, labels=ml)
        run(store, made)
        store.attempts.succeed(made, 1, report(row))
    cuts = [{"keep": keep} for keep in (0.8, 0.6, 0.4)]
    made = begin(RECOVERED, recovery={}, targets=cuts, labels=ml)
    run(store, made)
    store.attempts.succeed(made, 1, recovered_report())
    made = begin("smollm2-short", labels=search | {"stage": "trial"})
    run(store, made, until=Step.RESOLVE)
    failure = CalibrationTooShort("The text has 15,192 tokens; 24,576 are needed.").failure()
    store.attempts.fail(made, 1, failure, at_once(1))
    users.cancel(make("smollm2-typo"))
    run(store, begin(RUNNING, recovery={}, targets=cuts, labels=ml), until=Step.RECOVER)
    make("smollm2-quality", targets=[{"max_perplexity_increase": 0.1}], labels=search)
    make("smollm2-next", targets=[{"keep": 0.5}])
    for number, (name, job_id) in enumerate(reversed(ids.items())):
        minutes = 2 + 3 * number if number < 2 else 23 * number
        place_in_time(store, job_id, timedelta(minutes=0 if name == RUNNING else minutes))
    return ids


def run(store: Store, job_id: str, until: Step | None = None) -> None:
    """Write down the progress of the job's attempt, in the middle of a step or to the end."""
    attempts = store.attempts
    spec = store.users(DEFAULT_TENANT).get(job_id).spec
    seconds = {step: SECONDS[step] for step in spec.steps}
    for step in spec.steps:
        total, unit = UNITS[step]
        attempts.progress(job_id, 1, step, 0, total, unit)
        if step is Step.RECOVER:
            note_check(store, job_id)
        if step is until:
            attempts.progress(job_id, 1, step, total // 3, total, unit)
            return
        attempts.progress(job_id, 1, step, total, total, unit)
        if step is Step.RESOLVE:
            predicted = Prediction(Placement(2, 1, 0), version("eigenpress"), seconds, seconds)
            attempts.record(
                job_id, 1, PREDICTED, "The steps' times are predicted.", predicted.as_data()
            )


def note_check(store: Store, job_id: str) -> None:
    """Write down that the first target has been trained."""
    keep, row = next(iter(trainings().items()))
    message = (
        f"keep-{keep}: after {STEPS} of {STEPS} steps the divergence from the dense model "
        f"is {row['after']} nats per token, {row['divergence before']} before them."
    )
    store.attempts.record(job_id, 1, CHECKED, message)


def place_in_time(store: Store, job_id: str, ago: timedelta) -> None:
    """Let the last of the job's events have been so long ago, and the steps have taken time."""
    events, steps, jobs = tables.events, tables.steps, tables.jobs
    with store._database.writing() as connection:
        mine = select(events).where(events.c.job_id == job_id).order_by(events.c.id)
        found = connection.execute(mine).all()
        taken = [taken_before(each.type, each.data) for each in found]
        at = found[-1].at - ago - timedelta(seconds=sum(taken[1:]))
        times = {"created_at": at}
        for event, seconds in zip(found, [0.0, *taken[1:]], strict=True):
            at += timedelta(seconds=seconds)
            connection.execute(update(events).where(events.c.id == event.id).values(at=at))
            if event.type == EventType.CLAIMED:
                times["started_at"] = at
            elif event.type in (EventType.STEP_STARTED, EventType.STEP_FINISHED):
                column = event.type.removeprefix("step.") + "_at"
                its = steps.c.job_id == job_id, steps.c.step == event.data["step"]
                connection.execute(update(steps).where(*its).values({column: at}))
        row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one()
        if row.finished_at is not None:
            times["finished_at"] = at
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(times))


def taken_before(event: str, data: Mapping[str, Any]) -> float:
    """The seconds from the event before."""
    if event == CHECKED:
        return SECONDS[Step.RECOVER] / 3
    return SECONDS[data["step"]] if event == EventType.STEP_FINISHED else 2.0


def report(row: str) -> dict[str, Any]:
    """What a report says of sizes and perplexities, from docs/quality.md."""
    text = QUALITY.read_text()
    dense: dict[str, float] = {}
    made: dict[str, dict[str, float]] = {}
    for name in ("held-out", "humaneval"):
        section = text.partition(f"## Perplexity, {name}\n")[2]
        (before,) = re.findall(r"The dense model has ([\d.]+)\.\n", section.partition("|")[0])
        dense[name] = float(before)
        (cells,) = [each for each in rows(section) if row in each.values()]
        for keep in map(str, KEEPS):
            made.setdefault(keep, {})[name] = float(cells[keep])
    return document(dense, [target(keep, each, dense) for keep, each in made.items()])


def recovered_report() -> dict[str, Any]:
    """What a report says of a recovery, from docs/recovery.md."""
    dense: dict[str, float] = {}
    made: dict[str, dict[str, float]] = {}
    before: dict[str, dict[str, float]] = {}
    for each in table("as cut"):
        keep, name = each["keep"], each["text"]
        dense[name] = float(each["dense"])
        before.setdefault(keep, {})[name] = float(each["as cut"])
        made.setdefault(keep, {})[name] = float(each["recovered"])
    took = trainings()
    targets = [
        target(keep, perplexity, dense)
        | {
            "recovery": {
                "steps": STEPS,
                "seconds": float(took[keep]["seconds"]),
                "divergence_before": float(took[keep]["divergence before"]),
                "divergence_after": float(took[keep]["after"]),
                "perplexity_before": before[keep],
            }
        }
        for keep, perplexity in made.items()
    ]
    return document(dense, targets)


def document(dense: Mapping[str, float], targets: list[dict[str, Any]]) -> dict[str, Any]:
    curve = [{"kind": "dense", "linear_fraction": 1.0, "perplexity": dense}]
    for each in targets:
        perplexity = {name: found["perplexity"] for name, found in each["perplexity"].items()}
        size = each["size"]["linear_fraction"]
        point = {"kind": "target", "name": each["name"], "linear_fraction": size}
        curve.append(point | {"perplexity": perplexity})
    measured = {name: {"perplexity": perplexity} for name, perplexity in dense.items()}
    return {
        "model": {"parameters": PARAMETERS, "dense_bytes": 2 * PARAMETERS},
        "evaluation": {"dense": {"perplexity": measured}},
        "targets": targets,
        "curve": curve,
    }


def target(
    keep: str, perplexity: Mapping[str, float], dense: Mapping[str, float]
) -> dict[str, Any]:
    kept = PARAMETERS - LINEAR + round(float(keep) * LINEAR)
    return {
        "name": f"keep-{keep}",
        "size": {
            "parameters": kept,
            "bytes": 2 * kept,
            "model_fraction": kept / PARAMETERS,
            "linear_fraction": float(keep),
            "linear_bytes_fraction": float(keep),
        },
        "perplexity": {
            name: {"perplexity": each, "ratio": each / dense[name]}
            for name, each in perplexity.items()
        },
    }


def trainings() -> dict[str, dict[str, str]]:
    """What docs/recovery.md says of the training of each target of low rank, by what it keeps."""
    named = ((each[""].partition("training "), each) for each in table("seconds"))
    return {keep: each for (before, found, keep), each in named if found and not before}


def table(column: str) -> list[dict[str, str]]:
    """The rows of the table of docs/recovery.md that has a column."""
    tables_in = re.split(r"\n\n", RECOVERY.read_text())
    found = [[*rows(each)] for each in tables_in if each.startswith("|")]
    return next(each for each in found if column in each[0])


def rows(text: str) -> Iterator[dict[str, str]]:
    """The rows of the first table in a text, by its columns."""
    first = re.search(r"(?:^\|.*\n?)+", text, re.MULTILINE)
    assert first is not None
    lines = [line.strip("|").split("|") for line in first[0].splitlines()]
    header, _, *found = [[cell.strip() for cell in line] for line in lines]
    for cells in found:
        yield dict(zip(header, cells, strict=True))

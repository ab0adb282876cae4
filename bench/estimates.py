"""Compares estimates with what jobs take: their time, and the memory of their workers.

    python -m bench.estimates

For each model and number of workers it asks a service for an estimate, submits the job, and sets
what the steps took, and the most that a worker grew by, beside it. A service's first job is
estimated by the cost model alone, and later ones are corrected by those before. So each model has a
service of its own, and the page says which job was corrected, and by what the cost model was off.
Its exit status is not zero if an estimate is off by more than it may.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench import demo_data
from bench.demo_server import serving
from bench.measuring import machine
from bench.memory import JobFailed, Memory, Watch, follow, step_seconds, write_model
from service.client.client import Client
from service.domain.prediction import PREDICTED

WORKERS = (1, 2)
SEQUENCES, LENGTH, BATCH, EVALUATED = 32, 128, 4, 16
TIME_FACTOR, MEMORY_SHARE = 1.5, 0.15
"""How far an estimate may be off."""


@dataclass(frozen=True)
class Subject:
    """A model; `write` puts it into a folder, and returns where it is."""

    name: str
    write: Callable[[Path], Path]


@dataclass(frozen=True)
class Row:
    """A job: what was estimated, and what was measured. Memory is in bytes."""

    model: str
    workers: int
    tokens: int
    measured_jobs: int  # that corrected the estimate
    estimated: dict[str, float]  # seconds by step
    modelled: dict[str, float]  # by the cost model alone
    taken: dict[str, float]
    estimated_memory: int
    memory: int
    memory_by_step: dict[str, dict[str, int]]  # of that worker: its own, files', shared

    @property
    def time_ratio(self) -> float:
        return sum(self.estimated.values()) / sum(self.taken.values())

    @property
    def modelled_ratio(self) -> float:
        return sum(self.modelled.values()) / sum(self.taken.values())

    @property
    def memory_ratio(self) -> float:
        return self.estimated_memory / self.memory

    @property
    def time_holds(self) -> bool:
        return 1 / TIME_FACTOR <= self.time_ratio <= TIME_FACTOR

    @property
    def memory_holds(self) -> bool:
        return abs(self.memory_ratio - 1) <= MEMORY_SHARE


def _random(folder: Path, *, blocks: int, hidden: int, intermediate: int) -> Path:
    write_model(folder, blocks=blocks, hidden=hidden, intermediate=intermediate)
    return folder


SUBJECTS = (
    Subject("SmolLM2-135M", lambda _: demo_data.model_file()),
    Subject("4 blocks, 1024 × 4096", partial(_random, blocks=4, hidden=1024, intermediate=4096)),
    Subject("12 blocks, 512 × 1536", partial(_random, blocks=12, hidden=512, intermediate=1536)),
)
"""The demo's model, and random Llamas with these sides of hidden states and of MLPs."""


def main() -> int:
    arguments = _parser().parse_args()
    load = os.getloadavg()[0]  # of the work that the machine did before
    rows: list[Row] = []
    for subject in SUBJECTS:
        if arguments.model in subject.name:
            with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
                for row in measured(subject, arguments.workers, Path(scratch)):
                    print(json.dumps(asdict(row)), file=sys.stderr, flush=True)
                    rows.append(row)
    text = page(rows, machine(torch.device("cpu")) | {"load": f"{load:.1f}"})
    print(text)
    if arguments.out:
        (arguments.out / "estimates.md").write_text(text, "utf-8")
    return int(not all(row.time_holds and row.memory_holds for row in rows))


def measured(subject: Subject, workers: Sequence[int], scratch: Path) -> Iterator[Row]:
    """A row for each number of workers, on one service. Raises JobFailed and ServerFailed."""
    library, data, folder = scratch / "library", scratch / "data", scratch / "model"
    data.mkdir()
    folder.mkdir()
    model = subject.write(folder)
    demo_data.copy_standard_library(library)
    os.environ["EIGENPRESS_SUBMISSION_CHECK_SECONDS"] = "600"  # the machine may be busy
    command = [str(Path(sys.executable).with_name("eigenpress")), "serve"]
    with (
        serving(command, data, [model.parent, folder, library]) as server,
        Client(server.url, key=server.key) as client,
    ):
        for count in workers:
            yield _run(client, subject.name, _specification(model, library, count))


def _specification(model: Path, library: Path, workers: int) -> dict[str, Any]:
    return {
        "model": {"source": "local", "path": str(model)},
        "targets": [{"keep": 0.8}, {"keep": 0.6}],
        "workers": workers,
        "calibration": {
            "data": {"source": "local", "path": str(library), "pattern": "**/*.py"},
            "sequences": SEQUENCES,
            "sequence_length": LENGTH,
            "batch_size": BATCH,
        },
        "evaluation": {"sequences": EVALUATED},
    }


def _run(client: Client, name: str, specification: dict[str, Any]) -> Row:
    estimate = client.estimate(specification)
    seconds, memory = estimate["seconds"], estimate["memory"]
    if seconds is None or memory is None:
        raise JobFailed(f"it is not estimated: {estimate['problems']}, {estimate['unknown']}")
    with Watch() as watch:
        job = follow(client, client.submit(specification), watch)
    if job["state"] != "succeeded":
        raise JobFailed(f"the job is {job['state']}: {job.get('error')}")
    (predicted,) = (each for each in client.events(job["id"]) if each["type"] == PREDICTED)
    worker = watch.largest("worker")
    return Row(
        model=name,
        workers=specification["workers"],
        tokens=estimate["tokens"],
        measured_jobs=seconds["measured_jobs"],
        estimated=_rounded({each["step"]: each["seconds"] for each in seconds["steps"]}),
        modelled=_rounded(predicted["data"]["modelled"]),
        taken={step["step"]: step_seconds(step) or 0.0 for step in job["steps"]},
        estimated_memory=memory["worker"],
        memory=_taken(worker, specification["workers"]),
        memory_by_step=worker.parts,
    )


def _taken(worker: Memory, workers: int) -> int:
    """The bytes that a worker has grown by; those of Ray's object store are shared by all."""
    parts = (step for name, step in worker.parts.items() if name != "start")
    held = max(each["own"] + each["files"] + each["shared"] // workers for each in parts)
    return held - worker.before


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {step: round(each, 2) for step, each in seconds.items()}


def page(rows: Sequence[Row], computer: Mapping[str, str]) -> str:
    """The results in Markdown."""
    heads = ("model", "workers", "corrected by jobs", "estimated", "took", "ratio", "model alone")
    memory = ("memory", "taken", "ratio")
    return _PAGE.format(
        machine=f"{computer['device']}, {computer['cores']} cores, {computer['memory']}",
        load=computer["load"],
        versions=f"Python {computer['python']}, torch {computer['torch']}, Ray {version('ray')}",
        tokens=f"{SEQUENCES} sequences of {LENGTH} tokens",
        evaluated=EVALUATED,
        factor=TIME_FACTOR,
        share=f"{MEMORY_SHARE:.0%}",
        holding=_holding(rows),
        rows=_table((*heads, *memory), map(_cells, rows)),
        steps=_table(("model", "workers", *rows[0].estimated), (_steps(row) for row in rows)),
    )


def _holding(rows: Sequence[Row]) -> str:
    """How many estimates are near enough, of first jobs and of corrected ones."""
    first = [row for row in rows if not row.measured_jobs]
    corrected = [row for row in rows if row.measured_jobs]
    said = [
        f"{kind}: time for {sum(row.time_holds for row in chosen)} of {len(chosen)}, "
        f"memory for {sum(row.memory_holds for row in chosen)}"
        for kind, chosen in (("first jobs", first), ("corrected jobs", corrected))
    ]
    return ";\n".join(f"- {each}" for each in said)


def _cells(row: Row) -> list[str]:
    jobs = str(row.measured_jobs) if row.measured_jobs else "none: a first job"
    return [
        row.model,
        str(row.workers),
        jobs,
        f"{sum(row.estimated.values()):.0f} s",
        f"{sum(row.taken.values()):.0f} s",
        f"{row.time_ratio:.2f}",
        f"{row.modelled_ratio:.2f}",
        f"{row.estimated_memory / 1e6:.0f} MB",
        f"{row.memory / 1e6:.0f} MB",
        f"{row.memory_ratio:.2f}",
    ]


def _steps(row: Row) -> list[str]:
    cells = [f"{row.modelled[step]:.1f} / {row.taken.get(step, 0):.1f}" for step in row.estimated]
    return [row.model, str(row.workers), *cells]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_PAGE = """# Estimates and reality

Written by `python -m bench.estimates` on {machine}; {versions}.
The machine's load was {load} before that: on a machine with other work jobs take longer.
Each model has a service of its own, on local files. Jobs calibrate on {tokens},
make two artifacts, and measure perplexity on {evaluated} sequences and decoding speed. An estimate
holds if its time is within a factor of {factor}, and its memory within {share}. This holds for

{holding}.

{rows}

*Estimated* is what `POST /v1/estimates` said before the job; the ratios are of what was estimated
to what was measured. *Model alone* is the ratio without the correction by earlier jobs. *Memory*
is what the largest worker grew by beyond its program, with its part of Ray's object store.

By step, seconds by the cost model alone / as measured:

{steps}
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="", help="a part of the models' names, by default all")
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--out", type=Path, help="folder for the page")
    parser.add_argument("--scratch", type=Path, help="where to make a folder for everything")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Runs many small jobs through the whole service: throughput, waits, and what grows with them.

    python -m bench.jobs --jobs 200

It starts `eigenpress serve` as the demo does and keeps it busy with jobs of the tests' tiny model:
so many run at once (`--at-once`), and so many wait (`--waiting`). After every tenth job it prints
what the processes of the service hold. At the end it fits a line to the memory of each, from a
quarter of the jobs on: caches are full by then. Its exit status is not zero if a job failed, if
something is left of the jobs, or if the memory of the API, the dispatcher or Ray's head grew.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import demo_data
from bench.demo_server import ServerFailed, serving
from bench.jobs_memory import FLAT_SHARE, JUDGED, OF_JOBS, Growth, Sample, Watcher, growths
from service.client.client import Client, ClientError
from service.domain.states import TERMINAL, JobState
from tests.fixtures.models import save_tiny_model, tiny_llama_config

EVERY = 10
"""The number of jobs between two samples."""
POLL_SECONDS = 0.5
JOB_SECONDS = 600
"""If no job ends for so long, the run has failed."""
QUIET_SECONDS = 90
"""How long the service may take to clean up after the last job."""
MIB = 1 << 20
TEXTS = 20


class RunFailed(Exception):
    """The jobs do not end."""


@dataclass(frozen=True)
class Finished:
    """An ended job; the times are seconds since the epoch."""

    id: str
    state: str
    error: Any
    created: float
    submitted: float  # to Ray
    ended: float
    steps: dict[str, float]  # seconds


@dataclass(frozen=True)
class Load:
    """How many jobs there are."""

    jobs: int
    at_once: int
    waiting: int


def main() -> int:
    arguments = _parser().parse_args()
    load = Load(arguments.jobs, arguments.at_once, arguments.waiting)
    console = Console(width=150)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    finished: list[Finished] = []
    samples: list[Sample] = []
    try:
        with tempfile.TemporaryDirectory() as scratch:
            run(console, Path(scratch), load, finished, samples)
    except (RunFailed, ServerFailed, ClientError) as error:
        console.print(f"The run ended early: {error}", markup=False)
        return 1
    finally:
        problems = report(console, load, finished, samples)
        if arguments.json:
            found = {
                "jobs": [vars(job) for job in finished],
                "samples": [s.as_json() for s in samples],
            }
            arguments.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return int(bool(problems))


def run(
    console: Console, scratch: Path, load: Load, finished: list[Finished], samples: list[Sample]
) -> None:
    """Start a service, run the jobs and append what is found. Raises RunFailed, ServerFailed."""
    with service(scratch, load) as (client, watcher, specification):
        began, pending, submitted = time.time(), list[str](), 0
        last_end = time.monotonic()
        while len(finished) < load.jobs:
            while submitted < load.jobs and len(pending) < load.at_once + load.waiting:
                pending.append(client.submit(specification)["id"])
                submitted += 1
            ended = ended_jobs(client, pending)
            for job in ended:
                pending.remove(job)
                finished.append(times_of(client, job))
                last_end = time.monotonic()
                if len(finished) % EVERY == 0 or len(finished) == load.jobs:
                    samples.append(watcher.sample(len(finished), time.time() - began))
                    console.print(line(samples[-1]), markup=False, soft_wrap=True)
            if time.monotonic() - last_end > JOB_SECONDS:
                raise RunFailed(f"no job has ended for {JOB_SECONDS} seconds")
            time.sleep(POLL_SECONDS)
        samples.append(at_rest(watcher, len(finished), began))
        console.print(f"at rest: {line(samples[-1])}", markup=False, soft_wrap=True)


@contextmanager
def service(scratch: Path, load: Load) -> Iterator[tuple[Client, Watcher, dict[str, Any]]]:
    """A running service, and the specification of a job for it."""
    inputs, server = scratch / "inputs", scratch / "server"
    server.mkdir()
    (inputs / "texts").mkdir(parents=True)
    library = demo_data.library_sources(Path(sysconfig.get_path("stdlib")))
    for source in islice(library, TEXTS):
        shutil.copy(source, inputs / "texts")
    save_tiny_model(inputs / "tiny", tiny_llama_config())
    limit = f"EIGENPRESS_MAX_RUNNING_JOBS={load.at_once}"
    command = ["env", limit, str(Path(sys.executable).with_name("eigenpress")), "serve"]
    with (
        serving(command, server, [inputs]) as running,
        Client(running.url, key=running.key) as client,
        Watcher(running, server) as watcher,
    ):
        yield client, watcher, specification(inputs / "tiny", inputs / "texts")


def specification(model: Path, texts: Path) -> dict[str, Any]:
    """A job that goes through every step with one worker and two sequences."""
    return {
        "model": {"source": "local", "path": str(model)},
        "targets": [{"keep": 0.8}],
        "workers": 1,
        "calibration": {
            "data": {"source": "local", "path": str(texts), "pattern": "**/*.py"},
            "sequences": 2,
            "sequence_length": 128,
            "batch_size": 1,
        },
        "evaluation": {"sequences": 2},
    }


def ended_jobs(client: Client, pending: Sequence[str]) -> list[str]:
    """Those of the pending jobs that have ended."""
    active = [state for state in JobState if state not in TERMINAL]
    running = {job["id"] for job in client.jobs(limit=100, states=active)["jobs"]}
    return [job for job in pending if job not in running]


def times_of(client: Client, job_id: str) -> Finished:
    job, events = client.job(job_id), client.events(job_id)
    submitted = [event["at"] for event in events if event["type"] == "attempt.submitted"]
    ended = job["finished_at"]
    assert ended is not None, job["state"]
    return Finished(
        id=job_id,
        state=job["state"],
        error=job["error"],
        created=_seconds(job["created_at"]),
        submitted=_seconds(submitted[0] if submitted else ended),
        ended=_seconds(ended),
        steps=step_seconds(job, events),
    )


def step_seconds(job: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How long each step took, with what comes before the first: the driver, then its actors."""
    at = {event["type"]: _seconds(event["at"]) for event in reversed(events)}
    steps = job["steps"]
    if not steps or "workers.placed" not in at or not all(step["finished_at"] for step in steps):
        return {}
    first, placed = _seconds(steps[0]["started_at"]), at["workers.placed"]
    found = {"driver": first - at["attempt.submitted"], "actors": placed - first}
    for step in steps:
        begins = max(placed, _seconds(step["started_at"]))
        found[step["step"]] = _seconds(step["finished_at"]) - begins
    return found


def handovers(finished: Sequence[Finished], at_once: int) -> list[float]:
    """The seconds from when a job could have begun until Ray accepted it.

    It could once it had been created and one of the `at_once` places was free.
    """
    ends = sorted(job.ended for job in finished)
    found = []
    for number, job in enumerate(sorted(finished, key=lambda job: job.submitted)):
        free = ends[number - at_once] if number >= at_once else 0.0
        found.append(job.submitted - max(job.created, free))
    return found


def at_rest(watcher: Watcher, finished: int, began: float) -> Sample:
    """A sample after the service has cleaned up, or when the time for that is over."""
    deadline = time.monotonic() + QUIET_SECONDS
    while True:
        sample = watcher.sample(finished, time.time() - began, at_rest=True)
        if not leftovers(sample) or time.monotonic() > deadline:
            return sample
        time.sleep(POLL_SECONDS)


def leftovers(sample: Sample) -> list[str]:
    """What is left of jobs, although all have ended and been cleaned up."""
    left = {
        "processes": sample.processes_of_jobs,
        "jobs in Ray's list": sample.ray_jobs,
        "bytes in the object store": sample.objects,
        "bytes of scratch files": sample.scratch,
    }
    return [f"left of the jobs: {count} {what}" for what, count in left.items() if count]


def report(
    console: Console, load: Load, finished: Sequence[Finished], samples: Sequence[Sample]
) -> list[str]:
    """Print what was found and return what is wrong with it."""
    since = load.jobs // 4
    grown = growths((sample for sample in samples if not sample.at_rest), since)
    if finished:
        console.print(times_table(load, finished))
    if grown:
        console.print(growth_table(grown, since, len(finished)))
    problems = [
        f"{job.id} {job.state}: {job.error}" for job in finished if job.state != "succeeded"
    ]
    problems += [
        f"{name} grew by {grown[name].share:.0%}"
        for name in JUDGED
        if name in grown and not grown[name].flat
    ]
    problems += [left for sample in samples if sample.at_rest for left in leftovers(sample)]
    if len(finished) < load.jobs:
        problems.append(f"only {len(finished)} of {load.jobs} jobs have ended")
    for problem in problems:
        console.print(problem, markup=False)
    memory = "memory is flat" if grown else "too few samples to judge the memory"
    console.print("not as it should be" if problems else f"all jobs succeeded, {memory}")
    return problems


def times_table(load: Load, finished: Sequence[Finished]) -> Table:
    minutes = (max(j.ended for j in finished) - min(j.created for j in finished)) / 60
    table = Table(title=f"{len(finished)} jobs, {load.at_once} at once, {load.waiting} waiting")
    for heading in ("seconds", "median", "95 %"):
        table.add_column(heading, justify="left" if heading == "seconds" else "right")
    rows = {
        "in the queue": [job.submitted - job.created for job in finished],
        "a free place unused": handovers(finished, load.at_once),
        "running": [job.ended - job.submitted for job in finished],
    }
    for step in next((job.steps for job in finished if job.steps), {}):
        rows[f"  {step}"] = [job.steps[step] for job in finished if step in job.steps]
    for name, values in rows.items():
        table.add_row(name, f"{median(values):.1f}", f"{_p95(values):.1f}")
    table.caption = f"{len(finished) / minutes:.1f} jobs per minute"
    return table


def growth_table(grown: Mapping[str, Growth], since: int, jobs: int) -> Table:
    table = Table(title=f"Memory from job {since} to {jobs}")
    table.add_column("process")
    for heading in ("MiB", "KiB per job", "share", f"below {FLAT_SHARE:.0%}"):
        table.add_column(heading, justify="right")
    for name, g in grown.items():
        numbers = f"{g.at_start / MIB:.1f}", f"{g.per_job / 1024:+.1f}", f"{g.share:+.1%}"
        verdict = ("yes" if g.flat else "no") if name in JUDGED else ""
        table.add_row(name, *numbers, verdict)
    return table


def line(sample: Sample) -> str:
    memory = {name: size for name, size in sorted(sample.memory.items()) if name != OF_JOBS}
    return (
        f"{sample.finished} jobs, {sample.seconds:.0f} s; MiB: "
        + ", ".join(f"{name} {size / MIB:.1f}" for name, size in memory.items())
        + f"; {sample.processes_of_jobs} processes of jobs, {sample.ray_jobs} jobs in Ray; MiB: "
        f"objects {sample.objects / MIB:.1f}, scratch {sample.scratch / MIB:.1f}, "
        f"logs {sample.logs / MIB:.2f}, Ray's session {sample.session / MIB:.1f} in "
        f"{sample.session_files} files, database {sample.database / MIB:.2f}; open files: "
        + ", ".join(f"{name} {sample.open_files[name]}" for name in memory)
    )


def _seconds(time_of_day: str) -> float:
    return datetime.fromisoformat(time_of_day).timestamp()


def _p95(values: Sequence[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Many small jobs through the whole service.")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=2, help="jobs that run at the same time")
    parser.add_argument("--waiting", type=int, default=4, help="jobs that wait meanwhile")
    parser.add_argument("--json", type=Path, help="write all samples and times to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())

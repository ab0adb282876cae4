"""Measures the time from submit to first token: how soon a small job begins to calibrate.

    make bench

It starts `eigenpress serve` as the demo does and submits jobs one after the other, for the tests'
tiny model and for the demo's model, twice each. It cancels each job after its first calibration
batch. The first job of a fresh Ray takes longer than later ones, and the demo's model is converted
from GGUF once per machine. The times are from the job's own history. A last job of the demo's model
runs to its end and shows for how long its workers had nothing to do.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import demo_data
from bench.demo_server import serving
from service.client.client import Client
from tests.fixtures.models import save_tiny_model, tiny_llama_config

PHASES = {
    "queue": "attempt.submitted",
    "driver": "resolve started",
    "actors": "workers.placed",
    "model, texts": "resolve finished",
    "first batch": "calibrated",
}
"""The event that ends each phase."""

TARGET_SECONDS = {"tiny": 6.0, "SmolLM2-135M": 10.0}
"""The targets on two idle cores."""

WAITING_SECONDS = 300
POLL_SECONDS = 0.05


class StartFailed(Exception):
    """The job failed, or took too long, before it calibrated or ended."""


def main() -> int:
    arguments = _parser().parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(console, Path(scratch))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    return 0


def measure(console: Console, scratch: Path) -> list[dict[str, Any]]:
    """Start a service, run the jobs and print the table. Raises StartFailed and ServerFailed."""
    inputs, server = scratch / "inputs", scratch / "server"
    server.mkdir()
    demo_data.copy_standard_library(inputs / "texts")
    save_tiny_model(inputs / "tiny", tiny_llama_config())
    models = {"tiny": inputs / "tiny", "SmolLM2-135M": demo_data.model_file()}
    command = [str(Path(sys.executable).with_name("eigenpress")), "serve"]
    allowed = [inputs, models["SmolLM2-135M"].parent]
    found = []
    with (
        serving(command, server, allowed) as running,
        Client(running.url, key=running.key) as client,
    ):
        for name, model in models.items():
            for turn in ("first", "again"):
                seconds = phases(first_batch(client, specification(model, inputs / "texts")))
                found.append({"model": name, "turn": turn, "seconds": seconds})
        idle = idle_shares(client, specification(model, inputs / "texts", sequences=16))
    console.print(table(found))
    shares = ", ".join(f"{share:.1%}" for share in idle)
    console.print(f"Idle while {name} was calibrated and solved, by worker: {shares}")
    return found


def specification(model: Path, texts: Path, *, sequences: int = 2) -> dict[str, Any]:
    """A job with two workers, which share the sequences."""
    return {
        "model": {"source": "local", "path": str(model)},
        "targets": [{"keep": 0.8}],
        "workers": 2,
        "evaluation": {"enabled": False},
        "calibration": {
            "data": {"source": "local", "path": str(texts), "pattern": "**/*.py"},
            "sequences": sequences,
            "sequence_length": 128,
            "batch_size": 1,
        },
    }


def idle_shares(client: Client, spec: dict[str, Any]) -> list[float]:
    """Run a job to its end; the share of calibrating and solving in which each worker was idle."""
    job = client.wait(client.submit(spec)["id"])
    if job["state"] != "succeeded":
        raise StartFailed(f"the job is {job['state']}: {job.get('error')}")
    shares: list[float] = client.report(job["id"])["calibration"]["idle_shares"]
    return shares


def first_batch(client: Client, spec: dict[str, Any]) -> dict[str, datetime]:
    """Run a job up to its first batch; return when it was created and reached each event."""
    job = client.submit(spec)
    deadline = time.monotonic() + WAITING_SECONDS
    while (calibrated := _calibrated_at(job)) is None:
        if job["state"] not in ("queued", "running") or time.monotonic() > deadline:
            raise StartFailed(f"the job is {job['state']}: {job.get('error')}")
        time.sleep(POLL_SECONDS)
        job = client.job(job["id"])
    events = client.events(job["id"])
    client.cancel(job["id"])
    client.wait(job["id"])
    reached = {event["message"] if event["type"].startswith("step.") else event["type"]: event["at"]
               for event in reversed(events)}  # fmt: skip
    times = {"created": job["created_at"], **reached}
    return {name: datetime.fromisoformat(at) for name, at in times.items()} | {
        "calibrated": calibrated
    }


def phases(reached: Mapping[str, datetime]) -> dict[str, float]:
    """The seconds that each phase took."""
    times = [reached[name] for name in ("created", *PHASES.values())]
    return {
        phase: (end - start).total_seconds()
        for phase, start, end in zip(PHASES, times, times[1:], strict=False)
    }


def table(found: Sequence[Mapping[str, Any]]) -> Table:
    result = Table(title="From submit to first token, in seconds")
    result.add_column("model")
    for heading in (*PHASES, "all", "target"):
        result.add_column(heading, justify="right")
    for each in found:
        seconds, target = each["seconds"], TARGET_SECONDS[each["model"]]
        numbers = (*seconds.values(), sum(seconds.values()))
        result.add_row(
            f"{each['model']}, {each['turn']}", *(f"{n:.1f}" for n in numbers), f"{target:g}"
        )
    return result


def _calibrated_at(job: Mapping[str, Any]) -> datetime | None:
    """When the first batch was calibrated; None before that."""
    for step in job["steps"]:
        if step["step"] == "calibrate" and step["done"]:
            finished = step["finished_at"]
            return datetime.fromisoformat(finished) if finished else datetime.now().astimezone()
    return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="How long a small job takes to its first batch.")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Following a job to its end, for people or for programs."""

from __future__ import annotations

import sys
from typing import Any

import typer

from service.cli import rendering
from service.cli.connection import console, note, print_json
from service.client.answers import Job
from service.client.client import Client
from service.domain.states import JobState


def watch_to_end(client: Client, job_id: str, *, as_json: bool = False) -> None:
    """Show the job until it ends. Raises typer.Exit(1) unless it succeeds."""
    try:
        if as_json:
            job = client.wait(job_id, _Changes())
        else:
            job = rendering.follow(client, job_id, console(sys.stdout))
    except KeyboardInterrupt:
        note(f"The job continues. Follow it again: eigenpress watch {job_id}")
        raise
    if job["state"] == JobState.SUCCEEDED:
        note(f"Get it: eigenpress download {job_id}")
        return
    if job["state"] == JobState.FAILED:
        note(f"Run it again: eigenpress retry {job_id}")
    raise typer.Exit(1)


class _Changes:
    """Prints the job as a line of JSON whenever it has changed; the time left always does."""

    def __init__(self) -> None:
        self._last: dict[str, Any] | None = None

    def __call__(self, job: Job) -> None:
        if (lasting := _lasting(job)) != self._last:
            self._last = lasting
            print_json(job, line=True)


def _lasting(job: Job) -> dict[str, Any]:
    """The job without the times that are left."""
    steps = [{**step, "seconds_left": None} for step in job["steps"]]
    return {**job, "steps": steps, "time_left": None}

"""The commands about jobs that exist: list, watch, cancel, retry, delete, download.

Results go to standard output, remarks and progress to standard error, so that
``job=$(eigenpress submit ...)`` captures the result alone.
"""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TextIO

import typer
from rich.console import Console

from service.cli import rendering
from service.client.client import DEFAULT_URL, Client
from service.client.download import download_artifact
from service.domain.spec import NAME_PATTERN
from service.domain.states import JobState
from service.errors import ArtifactCorrupt
from service.printable import printable

PIPE_WIDTH = 200
"""Columns where the output is not a terminal: lines for a script should not be folded."""

Url = Annotated[
    str, typer.Option(envvar="EIGENPRESS_URL", metavar="URL", help="The server's address.")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)]


def jobs(
    state: Annotated[
        list[JobState] | None,
        typer.Option(metavar="STATE", help="Only jobs in this state. Repeat for several."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, metavar="N", help="How many.")] = 20,
    url: Url = DEFAULT_URL,
) -> None:
    """List jobs, newest first."""
    with Client(url) as client:
        page = client.jobs(limit, states=state or ())
    if page["jobs"]:
        console(sys.stdout).print(rendering.jobs_table(page["jobs"], datetime.now(UTC)))
    notes = console(sys.stderr)
    if not page["jobs"]:
        notes.print("No jobs." if not state else "No such jobs.", style="dim")
    elif page["next_cursor"]:
        notes.print(f"There are more than these {limit}; see --limit.", style="dim")


def watch(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="The job's id. Unset: the newest job.")
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Follow a job to its end, step by step. Ctrl-C does not stop the job.

    The exit status is 0 only if the job succeeds.
    """
    with Client(url) as client:
        watch_to_end(client, job or _newest(client))


def cancel(job: JobId, url: Url = DEFAULT_URL) -> None:
    """Cancel a job, waiting or running."""
    with Client(url) as client:
        console(sys.stdout).print(rendering.outcome(client.cancel(job)))


def retry(
    job: JobId,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Run a failed job again. It resumes from its checkpoints if they are still there."""
    with Client(url) as client:
        queued = client.retry(job)
        if watch:
            watch_to_end(client, job)
        else:
            console(sys.stdout).print(rendering.outcome(queued))


def delete(job: JobId, url: Url = DEFAULT_URL) -> None:
    """Delete an ended job, with its artifacts, events and report. This cannot be undone."""
    with Client(url) as client:
        client.delete(job)
    console(sys.stdout).print(f"{job} deleted")


def download(
    job: JobId,
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="One artifact, such as keep-0.8. Unset: all."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="Where to put it. Unset: ./NAME."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="Files at a time.")] = 4,
    url: Url = DEFAULT_URL,
) -> None:
    """Download a job's artifacts, each checked against its manifest.

    Run the command again to resume a download that was interrupted.
    """
    with Client(url) as client:
        names = [name] if name else [artifact["name"] for artifact in client.artifacts(job)]
        for each in names:
            target = folder or _folder_named(each)
            with rendering.transfer_bar(console(sys.stderr), each) as progress:
                download_artifact(client, job, each, target, workers, progress)
            typer.echo(printable(str(target)))


def watch_to_end(client: Client, job_id: str) -> None:
    """Show the job until it ends. Raises typer.Exit(1) unless it succeeds."""
    try:
        job = rendering.follow(client, job_id, console(sys.stdout))
    except KeyboardInterrupt:
        console(sys.stderr).print(f"The job continues. Follow it again: eigenpress watch {job_id}")
        raise
    if job["state"] != JobState.SUCCEEDED:
        raise typer.Exit(1)
    console(sys.stderr).print(f"Get it: eigenpress download {job_id}", style="dim")


def console(stream: TextIO) -> Console:
    """A console on this stream, `PIPE_WIDTH` columns wide unless the stream is a terminal."""
    width = None if stream.isatty() else PIPE_WIDTH
    return rendering.PrintableConsole(file=stream, width=width, highlight=False)


def _folder_named(artifact: str) -> Path:
    """A folder in the current directory. Raises ArtifactCorrupt for an invalid name."""
    if not re.fullmatch(NAME_PATTERN, artifact):
        raise ArtifactCorrupt(f"{artifact!r} is not a valid name for an artifact")
    return Path(artifact)


def _newest(client: Client) -> str:
    jobs = client.jobs(limit=1)["jobs"]
    if not jobs:
        console(sys.stderr).print("No jobs.", style="dim")
        raise typer.Exit(1)
    return str(jobs[0]["id"])

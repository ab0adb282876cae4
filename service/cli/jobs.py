"""The commands about jobs that exist: list, show, watch, change, cancel, retry, delete."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, TypeVar, get_args

import typer

from service.cli import rendering
from service.cli.connection import AsJson, JobId, Url, connect, console, note, print_json
from service.cli.watching import watch_to_end
from service.client.answers import Job
from service.client.client import DEFAULT_URL, Client
from service.client.request import ValueInvalid, label, label_change
from service.domain.spec.job import MAX_PRIORITY, Method
from service.domain.states import TERMINAL, JobState

Value = TypeVar("Value")

TIMES = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%S%z"]
TIME = "A day or a time, such as 2026-11-21 or 2026-11-21T12:00:00Z; local unless it has a zone."


def jobs(
    state: Annotated[
        list[JobState] | None,
        typer.Option(metavar="STATE", help="Only jobs in this state. Repeat for several."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD",
            help=f"Only jobs with this method: {', '.join(get_args(Method))}. Repeat for several.",
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only jobs with this name.")
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            metavar="NAME=VALUE",
            help="Only jobs with this label. Repeat to ask for all of several.",
        ),
    ] = None,
    created_after: Annotated[
        datetime | None,
        typer.Option(formats=TIMES, metavar="TIME", help=f"Submitted then or later. {TIME}"),
    ] = None,
    created_before: Annotated[
        datetime | None, typer.Option(formats=TIMES, metavar="TIME", help="Submitted before.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, metavar="N", help="How many.")] = 20,
    cursor: Annotated[
        str | None,
        typer.Option(metavar="CURSOR", help="The next_cursor of a page, for the one after it."),
    ] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List jobs, newest first."""
    wanted = dict(_parsed(label, each, "--label") for each in labels or ())
    with connect(url) as client:
        page = client.jobs(
            limit,
            cursor,
            state or (),
            methods=method or (),
            name=name,
            labels=wanted,
            created_after=created_after,
            created_before=created_before,
        )
    if as_json:
        print_json(page)
        return
    if page["jobs"]:
        console(sys.stdout).print(rendering.jobs_table(page["jobs"], datetime.now(UTC)))
    filtered = state or method or name or wanted or created_after or created_before
    if not page["jobs"]:
        note("No such jobs." if filtered else "No jobs.")
    elif page["next_cursor"]:
        note(f"There are more than these {limit}: --limit, or --cursor {page['next_cursor']}")


def show(job: JobId, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Show a job: its state, steps, labels, targets and error."""
    with connect(url) as client:
        shown = client.job(job)
    if as_json:
        print_json(shown)
        return
    console(sys.stdout).print(rendering.details(shown, datetime.now(UTC)), soft_wrap=True)
    _say_next(shown)


def watch(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="The job's id. Unset: the newest job.")
    ] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Follow a job to its end, step by step. Ctrl-C does not stop the job.

    The exit status is 0 only if the job succeeds. With --json it prints a line with the whole job
    at every change.
    """
    with connect(url) as client:
        watch_to_end(client, job or _newest(client), as_json=as_json)


def label_job(
    job: JobId,
    changes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHANGE...",
            help="NAME=VALUE sets a label, NAME- removes one.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Set or remove labels of a job, such as team=ml or trial-. Without changes: show them."""
    wanted = dict(_parsed(label_change, each, "CHANGE") for each in changes or ())
    with connect(url) as client:
        changed = client.change(job, labels=wanted) if wanted else client.job(job)
    if as_json:
        print_json(changed)
        return
    for name, value in changed["spec"].get("labels", {}).items():
        console(sys.stdout).print(f"{name}={value}", markup=False, soft_wrap=True)


def priority(
    job: JobId,
    number: Annotated[
        int,
        typer.Argument(
            metavar="N", min=-MAX_PRIORITY, max=MAX_PRIORITY, help="Higher runs earlier."
        ),
    ],
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Change the priority of a job that is queued."""
    with connect(url) as client:
        changed = client.change(job, priority=number)
    if as_json:
        print_json(changed)
    else:
        text = f"{job} {changed['state']} with priority {changed['spec']['priority']}"
        console(sys.stdout).print(text, markup=False, soft_wrap=True)


def cancel(job: JobId, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Cancel a job, waiting or running."""
    with connect(url) as client:
        _print_outcome(client.cancel(job), as_json=as_json)


def retry(
    job: JobId,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Run a failed job again. It resumes from its checkpoints if they are still there."""
    with connect(url) as client:
        queued = client.retry(job)
        if watch:
            watch_to_end(client, job, as_json=as_json)
        else:
            _print_outcome(queued, as_json=as_json)


def delete(job: JobId, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Delete an ended job, with its artifacts, events and report. This cannot be undone."""
    with connect(url) as client:
        client.delete(job)
    if as_json:
        print_json({"id": job, "deleted": True})
    else:
        console(sys.stdout).print(f"{job} deleted")


def _print_outcome(job: Job, *, as_json: bool) -> None:
    if as_json:
        print_json(job)
    else:
        console(sys.stdout).print(rendering.outcome(job))
        _say_next(job)


def _say_next(job: Job) -> None:
    """What one may want to do with a job in this state."""
    job_id = job["id"]
    if job["state"] == JobState.SUCCEEDED:
        note(f"Its results: eigenpress report {job_id}, eigenpress download {job_id}")
    elif job["state"] == JobState.FAILED:
        note(f"Run it again: eigenpress retry {job_id}")
    elif job["state"] not in TERMINAL:
        note(f"Follow it: eigenpress watch {job_id}")


def _parsed(parse: Callable[[str], Value], text: str, option: str) -> Value:
    try:
        return parse(text)
    except ValueInvalid as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def _newest(client: Client) -> str:
    jobs = client.jobs(limit=1)["jobs"]
    if not jobs:
        note("No jobs.")
        raise typer.Exit(1)
    return jobs[0]["id"]

"""The command that shows what an attempt's processes have printed, and follows it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from service.cli.jobs import JobId, Url, console
from service.client.client import DEFAULT_URL, Client
from service.printable import printable, uncoloured


def logs(
    job: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the attempt ends, or Ctrl-C.")
    ] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Unset: the last attempt.")
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="driver, which has the workers' output, too; or one: worker-0."
        ),
    ] = "driver",
    url: Url = DEFAULT_URL,
) -> None:
    """Show what the driver of a job's attempt has printed, or one of its workers."""
    shown_until = 0
    notes = console(sys.stderr)
    with Client(url) as client:
        pages = client.follow_logs(job, attempt, source, patience_seconds=60.0 if follow else 0.0)
        for page in pages:
            if page["start"] > shown_until:
                skipped = page["start"] - shown_until
                notes.print(f"{skipped:,} bytes before this were not kept.", style="dim")
            typer.echo(printable(uncoloured(page["text"])), nl=False)
            shown_until = page["next_after"]
            if not (page["text"] or follow):
                break
    if page["missing"]:
        notes.print(page["missing"], style="yellow")
    elif not page["attempt"]:
        notes.print("The job has had no attempt.", style="dim")

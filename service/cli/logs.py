"""The command that shows what an attempt's processes have printed, and follows it."""

from __future__ import annotations

from typing import Annotated

import typer

from service.cli.connection import AsJson, JobId, Url, connect, note, print_json
from service.client import following
from service.client.client import DEFAULT_URL
from service.log_lines import readable
from service.printable import printable, uncoloured

PATIENCE_SECONDS = 60.0
"""How long an outage may last while a log is followed."""


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
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show what the driver of a job's attempt has printed, or one of its workers."""
    shown_until = 0
    with connect(url) as client:
        patience = PATIENCE_SECONDS if follow else 0.0
        for page in following.logs(client, job, attempt, source, patience_seconds=patience):
            if as_json:
                print_json(page, line=True)
                if not (page["text"] or follow):
                    return
                continue
            if page["start"] > shown_until:
                skipped = page["start"] - shown_until
                note(f"{skipped:,} bytes before this were not kept.")
            typer.echo(printable(readable(uncoloured(page["text"]))), nl=False)
            shown_until = page["next_after"]
            if not (page["text"] or follow):
                break
    if page["missing"] and not as_json:
        note(page["missing"])
    elif not page["attempt"] and not as_json:
        note("The job has had no attempt.")

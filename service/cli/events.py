"""The command that lists a job's events, and follows them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.text import Text

from service.cli.jobs import JobId, Url, console
from service.client.client import DEFAULT_URL, Client, Json

PAGE_EVENTS = 1000


def events(
    job: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends, or Ctrl-C.")
    ] = False,
    after: Annotated[
        int, typer.Option(min=0, metavar="ID", help="Only events with a greater id.")
    ] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line, as the API has them.")
    ] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show what has happened to a job, oldest first."""
    shown = console(sys.stdout)
    with Client(url) as client:
        found = client.follow_events(job, after) if follow else _all(client, job, after)
        for event in found:
            if as_json:
                typer.echo(json.dumps(event))
            else:
                shown.print(line(event), soft_wrap=True)


def line(event: Json) -> Text:
    """An event in one line: when, in which attempt, its type and its message."""
    attempt = "" if event["attempt"] is None else f"attempt {event['attempt']}"
    text = Text().append(f"{event['at'][:19]}Z  {attempt:<10}  ", "dim")
    return text.append(f"{event['type']:<18}  ", "bold").append(event["message"])


def _all(client: Client, job_id: str, after: int) -> Iterator[Json]:
    while page := client.events(job_id, after, PAGE_EVENTS):
        yield from page
        after = page[-1]["id"]

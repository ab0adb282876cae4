"""The command that lists a job's events, and follows them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.text import Text

from service.cli.connection import AsJson, JobId, Url, connect, console, print_json
from service.client import following
from service.client.answers import Event
from service.client.client import DEFAULT_URL, Client

PAGE_EVENTS = 1000


def events(
    job: JobId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends, or Ctrl-C.")
    ] = False,
    after: Annotated[
        int, typer.Option(min=0, metavar="ID", help="Only events with a greater id.")
    ] = 0,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show what has happened to a job, oldest first."""
    shown = console(sys.stdout)
    with connect(url) as client:
        found = following.events(client, job, after) if follow else _all(client, job, after)
        for event in found:
            if as_json:
                print_json(event, line=True)
            else:
                shown.print(line(event), soft_wrap=True)


def line(event: Event) -> Text:
    """An event in one line: when, in which attempt, its type and its message."""
    attempt = "" if event["attempt"] is None else f"attempt {event['attempt']}"
    text = Text().append(f"{event['at'][:19]}Z  {attempt:<10}  ", "dim")
    return text.append(f"{event['type']:<18}  ", "bold").append(event["message"])


def _all(client: Client, job_id: str, after: int) -> Iterator[Event]:
    while page := client.events(job_id, after, PAGE_EVENTS):
        yield from page
        after = page[-1]["id"]

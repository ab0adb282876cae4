"""The commands `eigenpress submit` and `estimate`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from service.cli import estimates
from service.cli.connection import AsJson, Url, connect, console, note, print_json
from service.cli.job_options import with_job
from service.cli.watching import watch_to_end
from service.client.answers import Json
from service.client.client import DEFAULT_URL
from service.printable import printable


@with_job
def submit(
    body: Json,
    watch: Annotated[bool, typer.Option("--watch", help="Follow the job to its end.")] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Submit a job. Standard output gets its id and nothing else.

    A job is a model (--model), text to calibrate on (--data) and one target or more: sizes in
    parameters (--keep) or bytes (--bytes), or qualities (--max-perplexity-increase); or a file with
    all of that (--file). The server checks them before it takes the job.
    """
    with connect(url) as client:
        job = client.submit(body)
        if watch and as_json:
            watch_to_end(client, job["id"], as_json=True)
            return
        if as_json:
            print_json(job)
        else:
            typer.echo(printable(job["id"]))
        if watch:
            watch_to_end(client, job["id"])
        else:
            note(f"Queued. Follow it: eigenpress watch {job['id']}")


@with_job
def estimate(body: Json, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Say what a job would make and take, without running it.

    It takes the options of submit. The exit status is 1 if the job would be refused, or would fail.
    """
    with connect(url) as client:
        answer = client.estimate(body)
    if as_json:
        print_json(answer)
    else:
        console(sys.stdout).print(estimates.view(answer), soft_wrap=True)
    if answer["problems"]:
        raise typer.Exit(1)
    note("Submit it: eigenpress submit, with the same options")

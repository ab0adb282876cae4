"""What the commands share that talk to a server: the connection, and where their output goes.

Results go to standard output, remarks and progress to standard error, so that
``job=$(eigenpress submit ...)`` captures the result alone.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, TextIO

import typer
from rich.console import Console

from service.cli import rendering
from service.client.client import Client
from service.client.credentials import key_of_server
from service.client.versions import difference
from service.settings import Settings

KEY_VARIABLE = "EIGENPRESS_KEY"
PIPE_WIDTH = 200
"""Columns where the output is not a terminal: lines for a script should not be folded."""

Url = Annotated[
    str, typer.Option(envvar="EIGENPRESS_URL", metavar="URL", help="The server's address.")
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


@contextmanager
def connect(url: str) -> Iterator[Client]:
    """A client of the server, with the user's key; remarks at the end if its version is another."""
    with Client(url, key=api_key(url)) as client:
        try:
            yield client
        finally:
            if remark := difference(client.server_version):
                note(f"Note: {remark}.")


def api_key(url: str) -> str | None:
    """The key to show to this server: the user's, else that of a `serve` of theirs; None: none."""
    return os.environ.get(KEY_VARIABLE) or key_of_server(url, Settings().data_dir)


def console(stream: TextIO) -> Console:
    """A console on this stream, `PIPE_WIDTH` columns wide unless the stream is a terminal."""
    width = None if stream.isatty() else PIPE_WIDTH
    return rendering.PrintableConsole(file=stream, width=width, highlight=False)


def note(text: str) -> None:
    """A remark for people, such as what to type next."""
    console(sys.stderr).print(text, style="dim", markup=False, soft_wrap=True)


def print_json(value: object, *, line: bool = False) -> None:
    """Print one JSON document, or one line of several; all of its characters are ASCII."""
    typer.echo(json.dumps(value, indent=None if line else 2))

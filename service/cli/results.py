"""The commands for what a job has made: its artifacts and its report."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from service.cli import rendering, reports
from service.cli.connection import AsJson, JobId, Url, connect, console, note, print_json
from service.client.client import DEFAULT_URL
from service.client.download import download_artifact
from service.domain.spec import NAME_PATTERN
from service.errors import ArtifactCorrupt
from service.printable import printable


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
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Download a job's artifacts, each checked against its manifest.

    Run the command again to resume a download that was interrupted.
    """
    done = []
    with connect(url) as client:
        names = [name] if name else [artifact["name"] for artifact in client.artifacts(job)]
        for each in names:
            target = folder or _folder_named(each)
            with rendering.transfer_bar(console(sys.stderr), each) as progress:
                download_artifact(client, job, each, target, workers, progress)
            done.append({"name": each, "folder": str(target)})
            if not as_json:
                typer.echo(printable(str(target)))
    if as_json:
        print_json({"artifacts": done})


def report(
    job: JobId,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write the report there, as JSON."),
    ] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show what a job measured: sizes, perplexities, accuracies and times."""
    with connect(url) as client:
        content = client.report(job)
    if output is not None:
        output.write_text(json.dumps(content, indent=2) + "\n")
        typer.echo(printable(str(output)))
    elif as_json:
        print_json(content)
    else:
        console(sys.stdout).print(reports.view(content), soft_wrap=True)
        note(f"All of it: eigenpress report {job} --json; the models: eigenpress download {job}")


def _folder_named(artifact: str) -> Path:
    """A folder in the current directory. Raises ArtifactCorrupt for an invalid name."""
    if not re.fullmatch(NAME_PATTERN, artifact):
        raise ArtifactCorrupt(f"{artifact!r} is not a valid name for an artifact")
    return Path(artifact)

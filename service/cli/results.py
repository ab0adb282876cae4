"""The commands for what a job has made: its artifacts and its report."""

from __future__ import annotations

import json
import re
import sys
import webbrowser
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated

import typer

from service.cli import rendering, reports
from service.cli.connection import AsJson, JobId, Url, connect, console, note, print_json
from service.client.client import DEFAULT_URL
from service.client.download import download_artifact
from service.domain.spec.fields import NAME_PATTERN
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
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write it there: a page if the name ends in .html.",
        ),
    ] = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page of the report in a browser.")
    ] = False,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show what a job measured: sizes, perplexities, accuracies and times."""
    is_page = output is not None and output.suffix == ".html"
    with connect(url) as client:
        content = client.report(job)
        page = client.report_page(job) if open_page or is_page else ""
    if output is not None:
        output.write_text(page if is_page else json.dumps(content, indent=2) + "\n", "utf-8")
        typer.echo(printable(str(output)))
    if open_page:
        _open(page, output if is_page else None)
    elif as_json:
        print_json(content)
    elif output is None:
        console(sys.stdout).print(reports.view(content), soft_wrap=True)
        note(f"Pictures: eigenpress report {job} --open; the models: eigenpress download {job}")


def _open(page: str, file: Path | None) -> None:
    """Open a page in the browser, from a file that stays: the browser reads it later."""
    if file is None:
        with NamedTemporaryFile("w", encoding="utf-8", suffix=".html", delete=False) as made:
            made.write(page)
        file = Path(made.name)
    if not webbrowser.open(file.absolute().as_uri()):
        note(f"No browser could be started; open {printable(str(file))}")


def _folder_named(artifact: str) -> Path:
    """A folder in the current directory. Raises ArtifactCorrupt for an invalid name."""
    if not re.fullmatch(NAME_PATTERN, artifact):
        raise ArtifactCorrupt(f"{artifact!r} is not a valid name for an artifact")
    return Path(artifact)

"""The commands `eigenpress datasets`: upload, list, delete."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from service.cli import rendering
from service.cli.connection import AsJson, Url, connect, console, note, print_json
from service.cli.defaults import with_default
from service.client import datasets
from service.client.answers import Dataset
from service.client.client import DEFAULT_URL
from service.domain.datasets import Format
from service.domain.spec.sources import LocalData
from service.printable import printable
from service.quantities import duration, size_text

FORMATS: dict[str, Format] = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
}

app = typer.Typer(
    no_args_is_help=True, help="Upload texts to the server, and see which it has.", name="datasets"
)


@app.command()
def upload(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A text, JSONL or Parquet file; text and JSONL may be compressed with gzip.",
            show_default=False,
            exists=True,
            dir_okay=False,
        ),
    ],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="A label. Unset: the file has none.")
    ] = None,
    kind: Annotated[
        Format | None,
        typer.Option("--format", help="What the file is. Unset: what its suffix says."),
    ] = None,
    text_field: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=with_default(
                "The field of JSONL, or the column of Parquet, that holds the text, or the "
                "messages of a chat.",
                LocalData,
                "text_field",
            ),
        ),
    ] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Upload a file. Standard output gets the dataset's id and nothing else.

    The server checks all of the file while it arrives, and keeps nothing of one that it refuses.
    """
    kind = kind or _format_of(file)
    bar = rendering.transfer_bar(console(sys.stderr), file.name)
    with connect(url) as client, bar as progress:
        made = datasets.upload(
            client, file, kind, name=name, text_field=text_field, on_progress=progress
        )
    if as_json:
        print_json(made)
        return
    typer.echo(printable(made["id"]))
    empty = f", {made['empty_rows']:,} rows without text" if made["empty_rows"] else ""
    note(f"{made['documents']:,} documents{empty}.")
    note(f"Use it: eigenpress submit --data dataset:{made['id']} ...")


@app.command("list")
def list_(
    limit: Annotated[int, typer.Option(min=1, max=200, metavar="N", help="How many.")] = 20,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List datasets, newest first."""
    with connect(url) as client:
        page = client.send(datasets.datasets(limit))
    if as_json:
        print_json(page)
        return
    if page["datasets"]:
        console(sys.stdout).print(_table(page["datasets"], datetime.now(UTC)))
    else:
        note("No datasets. Upload one: eigenpress datasets upload FILE")
    if page["next_cursor"]:
        note(f"There are more than these {limit}; see --limit.")


@app.command()
def delete(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="The dataset's id.", show_default=False)
    ],
    url: Url = DEFAULT_URL,
) -> None:
    """Delete a dataset that no waiting or running job uses. This cannot be undone."""
    with connect(url) as client:
        client.send(datasets.delete(dataset))
    console(sys.stdout).print(f"{dataset} deleted")


def _format_of(file: Path) -> Format:
    suffix = Path(file.name.lower().removesuffix(".gz")).suffix
    if suffix not in FORMATS:
        raise typer.BadParameter(
            f"{printable(file.name)} has none of the suffixes {', '.join(FORMATS)}: say what it is",
            param_hint="--format",
        )
    return FORMATS[suffix]


def _table(found: list[Dataset], now: datetime) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("DATASET", "NAME", "FORMAT", "SIZE", "DOCUMENTS", "TOKENS", "UPLOADED"):
        table.add_column(column, no_wrap=column == "DATASET")
    for each in found:
        uploaded = duration(now - datetime.fromisoformat(each["created_at"]))
        table.add_row(
            Text(each["id"]),
            Text(each["name"] or ""),
            each["format"],
            size_text(each["bytes"]),
            f"{each['documents']:,}",
            "" if each["tokens"] is None else f"{each['tokens']:,}",
            f"{uploaded} ago",
        )
    return table

"""The command line, `eigenpress`: its commands and its error messages.

The commands of `service.cli.submit` and `service.cli.jobs` talk to a server and need only the
light base of this package; those of `service.cli.server` run one. A user's mistake ends with a
line that tells what to do; only a defect shows a traceback.

The exit status is 0, 1 for a failure (also of the watched job) or 2 for a wrong command line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.text import Text

from service.cli import datasets, jobs, server
from service.cli.submit import estimate, submit
from service.client.client import ClientError
from service.errors import EigenpressError

app = typer.Typer(
    help="Compress large language models: submit jobs, follow them, download the results.",
    epilog="Begin with [bold]eigenpress serve[/bold] in one terminal and "
    "[bold]eigenpress submit --help[/bold] in another.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

JOBS: tuple[Callable[..., None], ...] = (
    submit,
    estimate,
    jobs.jobs,
    jobs.watch,
    jobs.cancel,
    jobs.retry,
    jobs.delete,
    jobs.download,
)
HERE: tuple[Callable[..., None], ...] = (
    server.serve,
    server.api,
    server.dispatcher,
    server.migrate,
    server.expand,
)
for command in JOBS:
    app.command(rich_help_panel="Jobs")(command)
app.add_typer(datasets.app, rich_help_panel="Jobs")
for command in HERE:
    app.command(rich_help_panel="On this machine")(command)


def main() -> None:
    """Run the command line; the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # escape what its encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="eigenpress")
    except (ClientError, EigenpressError) as error:
        _fail(str(error), _where(error))
    except server.ExtraMissing as error:
        _fail(str(error))
    except ValidationError as error:  # only settings are validated here
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])).upper()
        message = first["msg"].removeprefix("Value error, ")
        _fail(f"EIGENPRESS_{name}: {message}" if name else message, status=2)
    except OSError as error:
        _fail(f"{error.strerror}: {error.filename}" if error.filename else str(error))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("eigenpress"))
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def _where(error: Exception) -> str:
    """The error's code and the field at fault, for programs."""
    parts = (getattr(error, "code", None), getattr(error, "param", None))
    return ", ".join(part for part in parts if part)


def _fail(message: str, where: str = "", status: int = 1) -> NoReturn:
    text = Text("Error: ", "bold red").append(message, "default not bold")
    if where:
        text.append(f"\n{where}", "dim not bold")
    jobs.console(sys.stderr).print(text, soft_wrap=True)
    sys.exit(status)


if __name__ == "__main__":
    main()

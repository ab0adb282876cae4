"""The command line, `eigenpress`: its commands and its error messages.

The commands of `service.cli.server` run a server; all others talk to one, and need only the light
base of this package. A user's mistake ends with a line that tells what to do; only a defect shows a
traceback.

The exit status is 0, 1 for a failure (also of the watched job), 2 for a wrong command line or 130
after Ctrl-C.
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

from service.cli import access, credentials, datasets, jobs, results, server, webhooks
from service.cli.connection import console, note
from service.cli.events import events
from service.cli.logs import logs
from service.cli.submit import estimate, submit
from service.client.errors import ApiProblem, ApiUnreachable, ClientError
from service.errors import EigenpressError

app = typer.Typer(
    help="Compress large language models: submit jobs, follow them, download the results.",
    epilog="Begin with [bold]eigenpress serve[/bold] in one terminal and "
    "[bold]eigenpress submit --help[/bold] in another. The exit status is 0 for success, 1 for a "
    "failure, 2 for a wrong command line and 130 after Ctrl-C.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

JOBS: tuple[Callable[..., None], ...] = (
    submit,
    estimate,
    jobs.jobs,
    jobs.show,
    jobs.watch,
    events,
    logs,
    jobs.label_job,
    jobs.priority,
    jobs.cancel,
    jobs.retry,
    jobs.delete,
    results.report,
    results.download,
)
HERE: tuple[Callable[..., None], ...] = (
    server.serve,
    server.api,
    server.dispatcher,
    server.migrate,
    server.expand,
)
NAMES = {jobs.label_job: "label"}
NEGATIVE = {"ignore_unknown_options": True}
"""For a command whose argument may be a number such as -5, which looks like an option."""
for command in JOBS:
    app.command(
        NAMES.get(command),
        rich_help_panel="Jobs",
        context_settings=NEGATIVE if command is jobs.priority else None,
    )(command)
app.add_typer(datasets.app, name="datasets", rich_help_panel="Jobs")
app.add_typer(webhooks.app, name="webhooks", rich_help_panel="Jobs")
app.add_typer(access.keys, name="keys", rich_help_panel="Access")
access.tenants.add_typer(credentials.app, name="credentials")
app.add_typer(access.tenants, name="tenants", rich_help_panel="Access")
app.command(rich_help_panel="Access")(access.audit)
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
        _fail(str(error), _where(error), next_step=_next_step(error))
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


NEXT_STEPS = {
    "job_not_found": "List the jobs: eigenpress jobs",
    "key_missing": "Set EIGENPRESS_KEY. An administrator makes keys: eigenpress keys create",
    "key_invalid": "Set EIGENPRESS_KEY to another key. Keys are made by: eigenpress keys create",
    "scope_insufficient": "An administrator makes keys: eigenpress keys create --scope ...",
}
"""What to type after a problem with this code."""


def _next_step(error: Exception) -> str:
    """What to type after this error; empty where its message says so, or nothing helps."""
    if isinstance(error, ApiUnreachable):
        return "Start a server here: eigenpress serve; or name another: --url, EIGENPRESS_URL"
    return NEXT_STEPS.get(error.code, "") if isinstance(error, ApiProblem) else ""


def _fail(message: str, where: str = "", status: int = 1, *, next_step: str = "") -> NoReturn:
    text = Text("Error: ", "bold red").append(message, "default not bold")
    if where:
        text.append(f"\n{where}", "dim not bold")
    console(sys.stderr).print(text, soft_wrap=True)
    if next_step:
        note(next_step)
    sys.exit(status)


if __name__ == "__main__":
    main()

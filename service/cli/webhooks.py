"""The commands about webhooks: create, list, test, deliveries, enable, rotate, delete."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from service.cli.jobs import Url, console
from service.client.client import DEFAULT_URL, Client, Json
from service.domain.webhook import ENDS, WebhookEvent
from service.printable import printable

app = typer.Typer(
    help="Have the server tell your own servers of jobs' events.", no_args_is_help=True
)

WebhookId = Annotated[
    str, typer.Argument(metavar="WEBHOOK", help="The webhook's id.", show_default=False)
]
Limit = Annotated[int, typer.Option(min=1, max=200, metavar="N", help="How many.")]

STYLES = {"waiting": "yellow", "delivered": "green", "given_up": "red"}


@app.command()
def create(
    receiver: Annotated[
        str, typer.Argument(metavar="RECEIVER", help="The URL that gets the messages: https://...")
    ],
    event: Annotated[
        list[WebhookEvent] | None,
        typer.Option(
            metavar="EVENT",
            help=f"An event to send. Repeat for several. Unset: {', '.join(ENDS)}.",
        ),
    ] = None,
    description: Annotated[
        str | None, typer.Option(metavar="TEXT", help="For people.", show_default=False)
    ] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Create a webhook. Prints its id, and its secret, which is shown this once."""
    with Client(url) as client:
        made = client.webhooks.create(receiver, event or (), description)
    console(sys.stdout).print(f"{made['id']} {made['secret']}", soft_wrap=True)
    console(sys.stderr).print("Keep the secret: it is not shown again.", style="dim")


@app.command("list")
def list_webhooks(limit: Limit = 50, url: Url = DEFAULT_URL) -> None:
    """List webhooks, newest first."""
    with Client(url) as client:
        page = client.webhooks.list(limit)
    rows = [
        (each["id"], _state(each), each["url"], " ".join(each["events"]))
        for each in page["webhooks"]
    ]
    _print(("WEBHOOK", "STATE", "RECEIVER", "EVENTS"), rows, page, "No webhooks.")


@app.command("test")
def send_test(webhook: WebhookId, url: Url = DEFAULT_URL) -> None:
    """Send a test message. See `deliveries` for what came of it."""
    with Client(url) as client:
        console(sys.stdout).print(client.webhooks.test(webhook)["id"])


@app.command()
def deliveries(webhook: WebhookId, limit: Limit = 20, url: Url = DEFAULT_URL) -> None:
    """List what a webhook has sent, newest first."""
    with Client(url) as client:
        page = client.webhooks.deliveries(webhook, limit)
    rows = [
        (
            each["id"],
            each["type"],
            each["job_id"] or "",
            Text(each["state"], STYLES.get(each["state"], "")),
            str(each["attempts"]),
            each["error"] or "",
        )
        for each in page["deliveries"]
    ]
    columns = ("MESSAGE", "TYPE", "JOB", "STATE", "ATTEMPTS", "ERROR")
    _print(columns, rows, page, "No deliveries.")


@app.command()
def redeliver(
    webhook: WebhookId,
    message: Annotated[str, typer.Argument(metavar="MESSAGE", help="The message's id.")],
    url: Url = DEFAULT_URL,
) -> None:
    """Send a message again."""
    with Client(url) as client:
        client.webhooks.redeliver(webhook, message)
    console(sys.stdout).print(f"{message} is sent again")


@app.command()
def enable(webhook: WebhookId, url: Url = DEFAULT_URL) -> None:
    """Enable a webhook that was disabled."""
    with Client(url) as client:
        client.webhooks.change(webhook, enabled=True)
    console(sys.stdout).print(f"{webhook} enabled")


@app.command()
def disable(webhook: WebhookId, url: Url = DEFAULT_URL) -> None:
    """Send nothing until the webhook is enabled again."""
    with Client(url) as client:
        client.webhooks.change(webhook, enabled=False)
    console(sys.stdout).print(f"{webhook} disabled")


@app.command()
def rotate(webhook: WebhookId, url: Url = DEFAULT_URL) -> None:
    """Change the secret and print it. For a day, messages are signed with both."""
    with Client(url) as client:
        console(sys.stdout).print(client.webhooks.rotate(webhook)["secret"], soft_wrap=True)


@app.command()
def delete(webhook: WebhookId, url: Url = DEFAULT_URL) -> None:
    """Delete a webhook and the log of its deliveries."""
    with Client(url) as client:
        client.webhooks.delete(webhook)
    console(sys.stdout).print(f"{webhook} deleted")


def _state(webhook: Json) -> Text:
    if not webhook["enabled"]:
        return Text(f"disabled ({webhook['disabled']})", "red")
    return Text("failing", "yellow") if webhook["failing_since"] else Text("works", "green")


def _print(
    columns: Sequence[str], rows: Sequence[Sequence[str | Text]], page: Json, none: str
) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column not in ("ERROR", "EVENTS"))
    for row in rows:
        # Escaped here, where a column's width is measured.
        table.add_row(*(Text(printable(each)) if isinstance(each, str) else each for each in row))
    if rows:
        console(sys.stdout).print(table)
    notes = console(sys.stderr)
    if not rows:
        notes.print(none, style="dim")
    elif page["next_cursor"]:
        notes.print("There are more; see --limit.", style="dim")

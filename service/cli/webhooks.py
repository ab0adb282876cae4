"""The commands about webhooks: create, list, test, deliveries, enable, rotate, delete."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from service.cli.connection import AsJson, Url, connect, console, note, print_json
from service.client import webhooks
from service.client.answers import DeliveryPage, Webhook, WebhookPage
from service.client.client import DEFAULT_URL
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
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Create a webhook. Prints its id, and its secret, which is shown this once."""
    with connect(url) as client:
        made = client.send(webhooks.create(receiver, event or (), description))
    _say(f"{made['id']} {made['secret']}", made, as_json=as_json)
    note("Keep the secret: it is not shown again.")


@app.command("list")
def list_webhooks(limit: Limit = 50, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """List webhooks, newest first."""
    with connect(url) as client:
        page = client.send(webhooks.webhooks(limit))
    if as_json:
        print_json(page)
        return
    rows = [
        (each["id"], _state(each), each["url"], " ".join(each["events"]))
        for each in page["webhooks"]
    ]
    _print(("WEBHOOK", "STATE", "RECEIVER", "EVENTS"), rows, page, "No webhooks.")


@app.command("test")
def send_test(webhook: WebhookId, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Send a test message. See `deliveries` for what came of it."""
    with connect(url) as client:
        sent = client.send(webhooks.test(webhook))
    _say(sent["id"], sent, as_json=as_json)


@app.command()
def deliveries(
    webhook: WebhookId, limit: Limit = 20, as_json: AsJson = False, url: Url = DEFAULT_URL
) -> None:
    """List what a webhook has sent, newest first."""
    with connect(url) as client:
        page = client.send(webhooks.deliveries(webhook, limit))
    if as_json:
        print_json(page)
        return
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
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Send a message again."""
    with connect(url) as client:
        again = client.send(webhooks.redeliver(webhook, message))
    _say(f"{message} is sent again", again, as_json=as_json)


@app.command()
def enable(webhook: WebhookId, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Enable a webhook that was disabled."""
    with connect(url) as client:
        changed = client.send(webhooks.change(webhook, enabled=True))
    _say(f"{webhook} enabled", changed, as_json=as_json)


@app.command()
def disable(webhook: WebhookId, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Send nothing until the webhook is enabled again."""
    with connect(url) as client:
        changed = client.send(webhooks.change(webhook, enabled=False))
    _say(f"{webhook} disabled", changed, as_json=as_json)


@app.command()
def rotate(webhook: WebhookId, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Change the secret and print it. For a day, messages are signed with both."""
    with connect(url) as client:
        rotated = client.send(webhooks.rotate(webhook))
    _say(rotated["secret"], rotated, as_json=as_json)


@app.command()
def delete(webhook: WebhookId, url: Url = DEFAULT_URL) -> None:
    """Delete a webhook and the log of its deliveries."""
    with connect(url) as client:
        client.send(webhooks.delete(webhook))
    console(sys.stdout).print(f"{webhook} deleted")


def _say(text: str, answer: object, *, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        console(sys.stdout).print(text, soft_wrap=True, markup=False)


def _state(webhook: Webhook) -> Text:
    if not webhook["enabled"]:
        return Text(f"disabled ({webhook['disabled']})", "red")
    return Text("failing", "yellow") if webhook["failing_since"] else Text("works", "green")


def _print(
    columns: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    page: WebhookPage | DeliveryPage,
    none: str,
) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=column not in ("ERROR", "EVENTS"))
    for row in rows:
        # Escaped here, where a column's width is measured.
        table.add_row(*(Text(printable(each)) if isinstance(each, str) else each for each in row))
    if rows:
        console(sys.stdout).print(table)
    if not rows:
        note(none)
    elif page["next_cursor"]:
        note("There are more; see --limit.")

"""The commands about tenants' credentials, for administrators."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from service.cli.connection import AsJson, Url, connect, console, print_json
from service.client import tenant_credentials
from service.client.answers import Credential
from service.client.client import DEFAULT_URL

app = typer.Typer(
    help="Put, list and delete what a tenant's jobs read private models and texts with.",
    no_args_is_help=True,
)

TenantName = Annotated[str, typer.Argument(metavar="TENANT", help="The tenant's name.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The credential's name.")]
Region = Annotated[
    str | None, typer.Option(metavar="REGION", help="Unset: the region of the server's bucket.")
]
SecretFile = Annotated[
    Path | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="A file with the secret alone. Unset: standard input, or a prompt at a terminal.",
    ),
]


@app.command("put-hub")
def put_hub(
    tenant: TenantName,
    name: Name,
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="HUB", help="The hub's URL. Unset: the hub that the server reads."),
    ] = None,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Put a token of the hub; the secret is the token."""
    token = _secret(secret_file, "Token")
    with connect(url) as client:
        put = client.send(tenant_credentials.put_hub(tenant, name, token, endpoint=endpoint))
    _print([put], put, as_json=as_json)


@app.command("put-s3")
def put_s3(
    tenant: TenantName,
    name: Name,
    prefix: Annotated[
        list[str],
        typer.Option(metavar="S3_URI", help="A place that the keys are for. Repeat for several."),
    ],
    access_key_id: Annotated[
        str, typer.Option(metavar="ID", help="The access key's id.", show_default=False)
    ],
    endpoint: Annotated[
        str | None,
        typer.Option(metavar="S3", help="The S3 server's URL. Unset: that of the server's bucket."),
    ] = None,
    region: Region = None,
    session_token_from: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A file with the session token of temporary keys."),
    ] = None,
    secret_file: SecretFile = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Put keys of places in S3; the secret is the secret access key."""
    secret = _secret(secret_file, "Secret access key")
    session = (
        None
        if session_token_from is None
        else session_token_from.read_text(errors="replace").strip()
    )
    with connect(url) as client:
        put = client.send(
            tenant_credentials.put_s3(
                tenant,
                name,
                prefix,
                access_key_id,
                secret,
                session_token=session,
                endpoint=endpoint,
                region=region,
            )
        )
    _print([put], put, as_json=as_json)


@app.command("list")
def list_credentials(tenant: TenantName, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """List a tenant's credentials, without their secrets."""
    with connect(url) as client:
        found = client.send(tenant_credentials.credentials(tenant))["credentials"]
    _print(found, found, as_json=as_json)


@app.command("delete")
def delete(tenant: TenantName, name: Name, url: Url = DEFAULT_URL) -> None:
    """Delete a credential."""
    with connect(url) as client:
        client.send(tenant_credentials.delete(tenant, name))
    console(sys.stdout).print(f"{name} deleted", markup=False)


def _secret(file: Path | None, prompt: str) -> str:
    """A secret is never an argument: other users of the machine see those, and shells keep them."""
    if file is not None:
        return file.read_text(errors="replace").strip()
    if sys.stdin.isatty():
        return str(typer.prompt(prompt, hide_input=True, err=True)).strip()
    return sys.stdin.read().strip()


def _print(found: list[Credential], whole: object, *, as_json: bool) -> None:
    if as_json:
        print_json(whole)
        return
    table = Table(box=None, pad_edge=False)
    for column in ("name", "kind", "places", "server", "key id", "put"):
        table.add_column(column)
    for each in found:
        cells = (
            each["name"],
            each["kind"],
            ", ".join(each["prefixes"] or ["all"]),
            each["endpoint"] or "-",
            f"...{each['key_id_end']}" if each["key_id_end"] else "-",
            datetime.fromisoformat(each["created_at"]).astimezone().date().isoformat(),
        )
        table.add_row(*map(Text, cells))
    console(sys.stdout).print(table)

"""The commands about keys, tenants and the audit log, for administrators."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from service.cli.connection import AsJson, Url, connect, console, note, print_json
from service.client import access
from service.client.answers import AuditRecord, Key, Tenant
from service.client.client import DEFAULT_URL
from service.domain.principal import Scope

keys = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)
tenants = typer.Typer(help="Make, list and change tenants.", no_args_is_help=True)

PAGE = 200
SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

TenantName = Annotated[str, typer.Argument(metavar="NAME", help="The tenant's name.")]
MaxRunning = Annotated[
    int | None, typer.Option("--max-running", min=0, metavar="N", help="Jobs that run at a time.")
]
MaxQueued = Annotated[
    int | None, typer.Option("--max-queued", min=0, metavar="N", help="Jobs that wait.")
]
MaxStored = Annotated[
    str | None,
    typer.Option(
        "--max-stored",
        metavar="SIZE",
        help="Artifacts, datasets and uploads under way, as in 200GB.",
    ),
]
Allow = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FOLDER", help="A folder that its jobs may read, on the server. Repeat for several."
    ),
]
AllowS3 = Annotated[
    list[str] | None,
    typer.Option(
        metavar="S3_URI", help="A place in S3 that its jobs may read. Repeat for several."
    ),
]


@keys.command("create")
def create_key(
    scope: Annotated[Scope, typer.Option(metavar="SCOPE", help="reader, submitter or admin.")],
    tenant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose jobs it is for. Unset: default.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who or what has it, such as laptop.")
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(metavar="TIME", help="As in 90d, 12h or 30m. Unset: never.")
    ] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Make a key and print it. It is shown only once."""
    lifetime = None if expires_in is None else _seconds(expires_in)
    with connect(url) as client:
        made = client.send(
            access.create_key(scope, tenant=tenant, name=name, expires_in_seconds=lifetime)
        )
    if as_json:
        print_json(made)
        return
    typer.echo(made["key"])
    note(f"Use it as EIGENPRESS_KEY. Revoke it with: eigenpress keys revoke {made['id']}")


@keys.command("list")
def list_keys(
    tenant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only keys of this tenant.")
    ] = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """List keys, without their secrets."""
    found: list[Key] = []
    cursor = None
    with connect(url) as client:
        while True:
            page = client.send(access.keys(PAGE, cursor, tenant))
            found += page["keys"]
            if (cursor := page["next_cursor"]) is None:
                break
    if as_json:
        print_json(found)
        return
    _print_table(
        ("id", "tenant", "scope", "name", "state", "last used"),
        [
            (
                key["id"],
                key["tenant"],
                key["scope"],
                key["name"] or "",
                _key_state(key),
                _day(key["last_used_at"]) or "never",
            )
            for key in found
        ],
    )


@keys.command("revoke")
def revoke_key(
    key: Annotated[str, typer.Argument(metavar="ID", help="The key's id.", show_default=False)],
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Revoke a key at once. This cannot be undone."""
    with connect(url) as client:
        revoked = client.send(access.revoke_key(key))
    if as_json:
        print_json(revoked)
    else:
        console(sys.stdout).print(f"{revoked['id']} revoked")


@tenants.command("create")
def create_tenant(
    name: TenantName,
    max_running: MaxRunning = None,
    max_queued: MaxQueued = None,
    max_stored: MaxStored = None,
    allow: Allow = None,
    allow_s3: AllowS3 = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Make a tenant. What is not limited here is limited by the server's settings alone."""
    settings = _settings(max_running, max_queued, max_stored, allow, allow_s3)
    with connect(url) as client:
        made = client.send(access.create_tenant(name, settings))
    _print_tenants([made], as_json=as_json)
    note(f"Make a key for it: eigenpress keys create --scope submitter --tenant {made['name']}")


@tenants.command("change")
def change_tenant(
    name: TenantName,
    max_running: MaxRunning = None,
    max_queued: MaxQueued = None,
    max_stored: MaxStored = None,
    allow: Allow = None,
    allow_s3: AllowS3 = None,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Replace all settings of a tenant; those left out are limited no more."""
    settings = _settings(max_running, max_queued, max_stored, allow, allow_s3)
    with connect(url) as client:
        changed = client.send(access.change_tenant(name, settings))
    _print_tenants([changed], as_json=as_json)


@tenants.command("list")
def list_tenants(as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """List tenants, with their settings."""
    found: list[Tenant] = []
    cursor = None
    with connect(url) as client:
        while True:
            page = client.send(access.tenants(PAGE, cursor))
            found += page["tenants"]
            if (cursor := page["next_cursor"]) is None:
                break
    _print_tenants(found, as_json=as_json)


@tenants.command("usage")
def tenant_usage(name: TenantName, as_json: AsJson = False, url: Url = DEFAULT_URL) -> None:
    """Show what counts towards a tenant's limits."""
    with connect(url) as client:
        used = client.send(access.tenant_usage(name))
    if as_json:
        print_json(used)
        return
    console(sys.stdout).print(
        f"{used['running_jobs']} running, {used['queued_jobs']} queued, "
        f"{used['stored_bytes'] / 10**9:.1f} GB stored"
    )


def audit(
    tenant: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only changes with keys of this tenant.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many.")] = 20,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Show who changed what, newest first."""
    found: list[AuditRecord] = []
    cursor = None
    with connect(url) as client:
        while len(found) < limit:
            page = client.send(access.audit(min(limit - len(found), PAGE), cursor, tenant))
            found += page["records"]
            if (cursor := page["next_cursor"]) is None:
                break
    if as_json:
        print_json(found)
        return
    _print_table(
        ("when", "tenant", "key", "action", "subject", "address"),
        [
            (
                _moment(record["at"]),
                record["tenant"],
                record["key_id"],
                record["action"],
                record["subject"],
                record["address"] or "",
            )
            for record in found
        ],
    )
    if cursor is not None:
        note("There are more. Show them with --limit.")


def _settings(
    max_running: int | None,
    max_queued: int | None,
    max_stored: str | None,
    allow: list[Path] | None,
    allow_s3: list[str] | None,
) -> dict[str, Any]:
    settings = {
        "max_running_jobs": max_running,
        "max_queued_jobs": max_queued,
        "max_stored_bytes": None if max_stored is None else _bytes(max_stored),
        "allowed_roots": [str(folder.absolute()) for folder in allow] if allow else None,
        "allowed_s3_prefixes": allow_s3 or None,
    }
    return {name: value for name, value in settings.items() if value is not None}


def _print_tenants(found: list[Tenant], *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    rows = []
    for tenant in found:
        stored = tenant["max_stored_bytes"]
        rows.append(
            (
                tenant["name"],
                _limit(tenant["max_running_jobs"]),
                _limit(tenant["max_queued_jobs"]),
                _limit(None if stored is None else f"{stored / 10**9:g} GB"),
                _places(tenant["allowed_roots"]),
                _places(tenant["allowed_s3_prefixes"]),
            )
        )
    _print_table(("name", "running", "queued", "stored", "folders", "places in S3"), rows)


def _limit(value: object) -> str:
    return "-" if value is None else str(value)


def _places(places: list[str] | None) -> str:
    return "-" if places is None else ", ".join(places) or "none"


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*map(Text, row))  # brackets in a name are no markup
    console(sys.stdout).print(table)


def _key_state(key: Key) -> str:
    if key["revoked_at"]:
        return f"revoked {_day(key['revoked_at'])}"
    return f"until {_day(key['expires_at'])}" if key["expires_at"] else "valid"


def _day(time: str | None) -> str | None:
    return None if time is None else datetime.fromisoformat(time).astimezone().date().isoformat()


def _moment(time: str) -> str:
    return datetime.fromisoformat(time).astimezone().isoformat(" ", "seconds")


def _seconds(text: str) -> int:
    """The seconds of a time such as ``90d``."""
    match = re.fullmatch(r"([1-9]\d{0,8})([mhdw])", text)
    if match is None:
        raise typer.BadParameter(
            f"{text!r} is not a time such as 90d, 12h or 30m", param_hint="--expires-in"
        )
    return int(match[1]) * SECONDS[match[2]]


def _bytes(text: str) -> int:
    """The bytes of a size such as ``200GB``."""
    match = re.fullmatch(r"(\d{1,15})([KMGT]B)?", text)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a size such as 200GB", param_hint="--max-stored")
    return int(match[1]) * UNITS[match[2] or ""]

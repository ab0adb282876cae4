"""The commands that run a part of Eigenpress on this machine, instead of talking to a server.

Each needs an extra (`eigenpress[server]`, `eigenpress[worker]`) and names it if it is missing.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from service.cli.defaults import with_default
from service.cli.rendering import PrintableConsole
from service.errors import InvalidParameter
from service.log_lines import UVICORN_LOG
from service.settings import Settings


class ExtraMissing(Exception):
    """The command needs packages that are not installed."""


def serve(
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help=with_default("Database, bucket and caches.", Settings, "data_dir"),
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65_535,
            metavar="PORT",
            help=with_default("Of the API; 0: any.", Settings, "api_port"),
        ),
    ] = None,
    dashboard_port: Annotated[
        int, typer.Option(min=0, max=65_535, metavar="PORT", help="Of the Ray dashboard; 0: any.")
    ] = 8265,
    s3_port: Annotated[
        int, typer.Option(min=0, max=65_535, metavar="PORT", help="Of the S3 server; 0: any.")
    ] = 0,
    num_cpus: Annotated[
        int | None, typer.Option(min=1, metavar="N", help=r"CPUs for jobs. \[default: all]")
    ] = None,
    num_gpus: Annotated[
        int | None, typer.Option(min=0, metavar="N", help=r"GPUs for jobs. \[default: all]")
    ] = None,
    allow: Annotated[
        list[Path] | None,
        typer.Option(
            exists=True,
            file_okay=False,
            metavar="FOLDER",
            help="A folder that jobs may read models and text from; without one, they may read "
            "the current folder. Repeat for several.",
        ),
    ] = None,
) -> None:
    """Run everything here: API, dispatcher, Ray and an S3 server, until Ctrl-C.

    All parts listen on loopback only and stop together.
    """
    _require("ray", extra="server")
    from service.standalone import serve as standalone  # with the server's packages

    options = standalone.ServeOptions(
        data_dir=data_dir,
        port=port,
        dashboard_port=dashboard_port,
        s3_port=s3_port,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        allow=tuple(allow or ()),
    )
    standalone.serve(options, PrintableConsole(highlight=False))


def api(
    host: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help=with_default("", Settings, "api_host")),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=0, max=65_535, metavar="PORT", help=with_default("", Settings, "api_port")
        ),
    ] = None,
) -> None:
    """Run the API alone, with the EIGENPRESS_* settings."""
    settings = Settings()
    host = host or settings.api_host
    if not settings.require_keys and not _is_loopback(host):
        raise InvalidParameter(
            f"Without keys the API listens on loopback alone, not on {host}. Set "
            "EIGENPRESS_REQUIRE_KEYS to true, and EIGENPRESS_ADMIN_KEY.",
            param="--host",
        )
    port = settings.api_port if port is None else port
    _become(
        "uvicorn",
        "--factory",
        "api.app:create_app",
        "--host",
        host,
        "--port",
        str(port),
        "--log-config",
        str(UVICORN_LOG),
        needs="uvicorn",
        extra="server",
    )


def dispatcher() -> None:
    """Run the dispatcher alone, with the EIGENPRESS_* settings."""
    Settings()  # reports a wrong setting here, before the process is replaced
    _become("service.dispatch.dispatcher", needs="sqlalchemy", extra="server")


def migrate(
    create_bucket: Annotated[
        bool,
        typer.Option("--create-bucket", help="Also create the bucket, on your own S3 server."),
    ] = False,
) -> None:
    """Migrate the database to this version. Run it before the API and the dispatcher start."""
    _require("sqlalchemy", extra="server")
    from service.storage.s3 import ObjectStorage
    from service.store.migrate import migrate as bring_up_to_date  # with the server's packages

    settings = Settings()
    bring_up_to_date(settings.database)
    if create_bucket:
        ObjectStorage.from_settings(settings).create_bucket()


def expand(
    artifact: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="A downloaded artifact.")
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write, or the GGUF file.")],
    gguf: Annotated[
        bool, typer.Option("--gguf", help="Write a GGUF file, for llama.cpp; integers stay so.")
    ] = False,
) -> None:
    """Turn an artifact into a plain dense checkpoint, for engines that load nothing else."""
    module = "workers.artifact.gguf_file" if gguf else "workers.artifact.expand"
    _become(module, str(artifact), str(out), needs="torch", extra="worker")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _become(module: str, *arguments: str, needs: str, extra: str) -> NoReturn:
    """Replace this process by ``python -m module``, so that signals reach it directly."""
    _require(needs, extra)
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606


def _require(package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise ExtraMissing(f"this command needs more packages: pip install 'eigenpress[{extra}]'")

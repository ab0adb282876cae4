"""`eigenpress serve`: the whole service on one machine, for as long as the command runs.

    serve ── S3 server (SeaweedFS)      service.standalone.s3_server
          ── Ray, with its dashboard    service.standalone.ray_head
          ── dispatcher                 a child process
          ── API                        a child process

Each part starts when those above it answer, and stops before them. All parts, and Ray's workers,
get the settings as ``EIGENPRESS_*`` variables and listen on loopback only. SIGINT, SIGTERM and
SIGHUP stop everything; if one part dies, the others are stopped. Only the data folder remains.
After a SIGKILL, Linux kills the parts, and the next `serve` in the same data folder removes Ray's
remains and continues the jobs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from filelock import FileLock, Timeout
from pydantic import SecretStr
from rich.console import Console
from rich.text import Text

from service.client.credentials import ADDRESS_FILE, ADMIN_KEY_FILE, held
from service.cluster.ray_jobs import TOKEN_PATH_VARIABLE
from service.domain.keys import new_key as new_api_key
from service.domain.sign_in import sign_in_code
from service.encryption import new_key as new_encryption_key
from service.errors import InfrastructureError
from service.log_lines import UVICORN_LOG
from service.settings import Settings
from service.signals import StopRequest, stop_on_signals
from service.standalone.ports import LOOPBACK, answers, choose_port
from service.standalone.private_files import private_folder, write_private
from service.standalone.ray_head import NOT_FOR_JOBS, LocalRay
from service.standalone.s3_server import LocalS3
from service.standalone.subprocesses import Child, log_tail
from service.store.migrate import migrate

READY_SECONDS = 60.0
POLL_SECONDS = 0.2
DRAIN_SECONDS = 5
"""The time that requests in progress get to finish when the API stops."""
ENCRYPTION_KEY_FILE = "encryption-key"
"""Has the key of the secrets in the database, below the data folder."""
CREDENTIALS_KEY_FILE = "credentials-key"
"""Has the key of the tenants' credentials in the database."""
SECRETS = (
    "ray/token",
    "s3/credentials.json",
    ADMIN_KEY_FILE,
    ENCRYPTION_KEY_FILE,
    CREDENTIALS_KEY_FILE,
)
"""The secret files below the data folder, which earlier versions may have left to others."""


@dataclass(frozen=True)
class ServeOptions:
    """Options of the command line; None for those left out. Port 0 stands for any free port."""

    data_dir: Path | None = None
    port: int | None = None
    dashboard_port: int = 0
    s3_port: int = 0
    num_cpus: int | None = None
    num_gpus: int | None = None
    allow: tuple[Path, ...] = ()


def serve(options: ServeOptions, console: Console) -> None:
    """Run the service until a signal stops it.

    Raises `EigenpressError` if a part does not start, or dies; the others are stopped by then.
    """
    with stop_on_signals() as stop, ExitStack() as running:
        running.enter_context(occupied(data_folder(options)))
        installation = Installation(options)
        with console.status("Starting ...") as status:
            for doing in installation.start(running):
                status.update(f"{doing} ...")
                if stop.requested:
                    return
            installation.wait_until_ready(stop)
        if not stop.requested:
            running.enter_context(installation.announced())
            console.print(ready_block(installation), soft_wrap=True)
        while not stop.wait(POLL_SECONDS):
            installation.check()
        console.print("Stopping ...")


def data_folder(options: ServeOptions) -> Path:
    """The folder of all persistent data, which its owner alone can read.

    Raises `InvalidParameter` if it belongs to another user.
    """
    folder = (options.data_dir or Settings().data_dir).expanduser().absolute()
    private_folder(folder, SECRETS)
    return folder


@contextmanager
def occupied(data_dir: Path) -> Iterator[None]:
    """Lock the data folder against other `serve`s; stop the remains of one that was killed.

    Raises `InfrastructureError` if one runs there.
    """
    try:
        with FileLock(data_dir / "serve.lock", timeout=0):
            LocalRay(data_dir / "ray").remove_leftovers()
            yield
    except Timeout as error:
        raise InfrastructureError(
            f"Another server runs in {data_dir}. Stop it, or choose another --data-dir."
        ) from error


@dataclass(frozen=True)
class Part:
    """One process of the service."""

    name: str
    is_running: Callable[[], bool]
    log: Path


class Installation:
    """The parts of one `serve`, their settings and their order of start."""

    def __init__(self, options: ServeOptions) -> None:
        """Nothing is started yet. Raises `InvalidParameter` if a port is taken, or `OSError`."""
        base = Settings()
        data_dir = data_folder(options)
        port = base.api_port if options.port is None else options.port
        if base.admin_key is not None:  # the owner's clients find it in the file
            write_private(data_dir / ADMIN_KEY_FILE, base.admin_key.get_secret_value())
        self._admin_key = _kept_key(data_dir / ADMIN_KEY_FILE, new_api_key)
        encryption_key = base.encryption_key or SecretStr(
            _kept_key(data_dir / ENCRYPTION_KEY_FILE, new_encryption_key)
        )
        credentials_key = base.credentials_key or SecretStr(
            _kept_key(data_dir / CREDENTIALS_KEY_FILE, new_encryption_key)
        )
        self._s3 = LocalS3(
            data_dir / "s3", port=choose_port(options.s3_port, "--s3-port"), bucket=base.s3_bucket
        )
        dashboard_port = choose_port(options.dashboard_port, "--dashboard-port")
        dashboard = f"http://{LOOPBACK}:{dashboard_port}"
        roots = (*base.allowed_roots, *options.allow) or (Path.cwd(),)
        self.settings = base.model_copy(
            update={
                "data_dir": data_dir,
                "api_host": LOOPBACK,
                "api_port": choose_port(port, "--port"),
                "require_keys": True,
                "admin_key": None,  # the API alone has it
                "allowed_hosts": (LOOPBACK, "localhost"),
                "ray_address": dashboard,
                "ray_public_address": dashboard,
                "s3_endpoint_url": self._s3.endpoint_url,
                "s3_public_endpoint_url": self._s3.endpoint_url,
                "s3_access_key_id": SecretStr(self._s3.access_key_id),
                "s3_secret_access_key": SecretStr(self._s3.secret_access_key),
                "encryption_key": encryption_key,
                "credentials_key": credentials_key,
                "allowed_roots": tuple(dict.fromkeys(root.resolve() for root in roots)),
            }
        )
        self._ray = LocalRay(
            data_dir / "ray",
            num_cpus=options.num_cpus,
            num_gpus=options.num_gpus,
            dashboard_port=dashboard_port,
            env={k: v for k, v in environment(self.settings).items() if k not in NOT_FOR_JOBS},
        )
        self._parts: list[Part] = []

    @property
    def api_url(self) -> str:
        return f"http://{LOOPBACK}:{self.settings.api_port}"

    @property
    def sign_in_url(self) -> str:
        """A link that signs the owner's browser in; whoever has it may do everything."""
        return f"{self.api_url}/sign-in?code={sign_in_code(self._admin_key)}"

    @property
    def credentials_path(self) -> Path:
        return self._s3.directory / "credentials.json"

    @property
    def ray_token(self) -> str:
        """Where the token of Ray's dashboard is."""
        return self._ray.token_environment().get(TOKEN_PATH_VARIABLE, "in the environment")

    def start(self, running: ExitStack) -> Iterator[str]:
        """Start the parts in order and yield a description before each; `running` stops them."""
        yield "Starting the S3 server"
        running.enter_context(self._s3)
        log = self._s3.directory / "server.log"
        self._parts.append(Part("S3 server", lambda: self._s3.pid is not None, log))
        yield "Preparing the database"
        migrate(self.settings.database)
        yield "Starting Ray"
        running.enter_context(self._ray)
        self._parts.append(Part("Ray head", self._ray.is_running, self._ray.log_path))
        yield "Starting the dispatcher"
        self._start_child(running, "dispatcher", "service.dispatch.dispatcher")
        yield "Starting the API"
        self.start_api(running)

    def start_api(self, running: ExitStack) -> None:
        """Start the API, which gets the admin key; `running` stops it."""
        port, drain = str(self.settings.api_port), str(DRAIN_SECONDS)
        where = ("--host", LOOPBACK, "--port", port, "--timeout-graceful-shutdown", drain)
        alone = "--no-proxy-headers"  # else any client could say from where it comes
        self._api = self._start_child(
            running,
            "API",
            "uvicorn",
            "--factory",
            "api.app:create_app",
            "--log-config",
            str(UVICORN_LOG),
            *where,
            alone,
            EIGENPRESS_ADMIN_KEY=self._admin_key,
        )

    def wait_until_ready(self, stop: StopRequest) -> None:
        """Wait until the API is ready or a stop is requested."""
        deadline = time.monotonic() + READY_SECONDS
        headers = {"Authorization": f"Bearer {self._admin_key}"}
        with httpx.Client(
            base_url=self.api_url, headers=headers, trust_env=False, timeout=10
        ) as http:
            while (missing := self._missing(http)) and not stop.wait(POLL_SECONDS):
                self.check()
                if time.monotonic() > deadline:
                    raise InfrastructureError(f"The API is not ready: {missing}")

    @contextmanager
    def announced(self) -> Iterator[None]:
        """Tell the owner's clients where the server is, as long as the block runs."""
        address = self.settings.data_dir / ADDRESS_FILE
        write_private(address, f"{self.api_url}\n")
        try:
            with held(address):
                yield
        finally:
            address.unlink(missing_ok=True)

    def _missing(self, http: httpx.Client) -> str:
        """The API's description of what is missing; empty when it is ready.

        Raises `InfrastructureError` if another process answers at its port.
        """
        if not answers(self.settings.api_port, lambda: [psutil.Process(self._api.pid)]):
            return "it does not listen yet"
        try:
            response = http.get("/readyz")
        except httpx.TransportError as error:
            return str(error)
        return "" if response.is_success else response.text

    def check(self) -> None:
        """Raise `InfrastructureError`, with the end of its log, if a part has died."""
        for part in self._parts:
            if not part.is_running():
                words = log_tail(part.log)
                raise InfrastructureError(f"The {part.name} has died ({part.log}):\n{words}")

    def _start_child(
        self, running: ExitStack, name: str, module: str, *arguments: str, **secrets: str
    ) -> Child:
        log = self.settings.data_dir / "logs" / f"{name.lower()}.log"
        command = (sys.executable, "-m", module, *arguments)
        env = environment(self.settings) | self._ray.token_environment() | secrets
        child = running.enter_context(Child(command, env, log))
        self._parts.append(Part(name, child.is_running, log))
        return child


def _kept_key(path: Path, make: Callable[[], str]) -> str:
    """The key in this file, which is made if it is missing."""
    if not path.exists():
        write_private(path, f"{make()}\n")
    return path.read_text().strip()


def environment(settings: Settings) -> dict[str, str]:
    """Environment variables from which `Settings` reads these values."""
    return {
        f"EIGENPRESS_{name.upper()}": _as_text(value)
        for name, value in settings
        if value is not None
    }


def ready_block(installation: Installation) -> Text:
    """The addresses and folders of a running service."""
    settings, url = installation.settings, installation.api_url
    address = (
        "" if settings.api_port == Settings.model_fields["api_port"].default else f"--url {url} "
    )
    text = Text("\nEigenpress is ready.\n\n", "bold green")
    for label, value in {
        "API": url,
        "API docs": f"{url}/docs",
        "Sign in": installation.sign_in_url,
        "Admin key": str(settings.data_dir / ADMIN_KEY_FILE),
        "Ray dashboard": settings.ray_address,
        "Ray token": installation.ray_token,
        "S3": f"{settings.s3_endpoint_url}  bucket {settings.s3_bucket}",
        "S3 credentials": str(installation.credentials_path),
        "Data folder": str(settings.data_dir),
        "Jobs may read": ", ".join(map(str, settings.allowed_roots)),
    }.items():
        text.append(f"  {label:<16}", "bold not green").append(f"{value}\n", "default not bold")
    command = f"eigenpress submit {address}--model FOLDER --data FOLDER --keep 0.8 --watch"
    text.append(f"\nSubmit a job from another terminal:\n\n  {command}\n", "default not bold")
    return text.append("\nCtrl-C stops everything.", "default not bold")


def _as_text(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, tuple):
        return json.dumps([str(item) for item in value])
    return str(value)

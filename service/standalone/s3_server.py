"""A local S3 server: SeaweedFS on this machine's loopback interface.

It serves `eigenpress serve` and the tests. The data and the generated credentials stay in one
directory and are used again at the next start. Only loopback addresses are bound. Other users of
the same machine can reach those, but the S3 port asks for the credentials, and SeaweedFS's inner
ports for a certificate (`service.standalone.s3_security`).
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import SecretStr

from service.die_with_parent import tied
from service.errors import EigenpressError, StorageUnavailable
from service.settings import Settings
from service.standalone.ports import LOOPBACK, choose_port
from service.standalone.private_files import write_private
from service.standalone.s3_security import write_security
from service.storage.s3 import ObjectStorage

START_SECONDS = 60
STOP_SECONDS = 15
POLL_SECONDS = 0.05
LOG_TAIL_BYTES = 2000


class LocalS3:
    """A server with one bucket; a context manager that stops what it started.

    It is killed with the process that started it.
    """

    def __init__(self, directory: Path, port: int = 0, bucket: str = "eigenpress") -> None:
        self.directory = directory
        self.bucket = bucket
        self._wanted_port = port
        self._ports: list[int] = [port]
        self._lock = FileLock(directory / "server.lock", thread_local=False)
        self._process: subprocess.Popen[bytes] | None = None
        self._credentials: _Credentials | None = None

    @property
    def endpoint_url(self) -> str:
        return f"http://{LOOPBACK}:{self._ports[0]}"

    @property
    def access_key_id(self) -> str:
        return self._keys.access_key_id

    @property
    def secret_access_key(self) -> str:
        return self._keys.secret_access_key

    @property
    def pid(self) -> int | None:
        """The server's process id; None when it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def __enter__(self) -> LocalS3:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it serves the bucket to the credentials.

        Raises `InvalidParameter` if the port is taken, and `StorageUnavailable`, with the end of
        the server's log, if it does not start, for example because another server already runs
        in the same directory.
        """
        self._data_directory.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise StorageUnavailable(
                f"Another S3 server runs in {self.directory}. Stop it first."
            ) from error
        try:
            self._process = self._launch()
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server; does nothing if it does not run."""
        process, self._process = self._process, None
        if process:
            _end(process)
            self._remove_sockets()
        self._lock.release()

    @property
    def _data_directory(self) -> Path:
        return self.directory / "data"

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"

    @property
    def security_folder(self) -> Path:
        """SeaweedFS's working directory, and that of its tools that are to reach the server."""
        return self.directory / "security"

    @property
    def _keys(self) -> _Credentials:
        if self._credentials is None:
            self._credentials = _load_or_create(self.directory / "credentials.json")
        return self._credentials

    def _launch(self) -> subprocess.Popen[bytes]:
        self._ports = [choose_port(port, "port") for port in (self._wanted_port, *[0] * 9)]
        write_security(self.security_folder)
        with self._log.open("wb") as log:
            return subprocess.Popen(
                tied(self._command()),
                cwd=self.security_folder,
                env={
                    **os.environ,
                    "AWS_ACCESS_KEY_ID": self.access_key_id,
                    "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
                },
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches this process alone, which stops the server
                umask=0o077,  # the Unix sockets in /tmp are for their owner alone
            )

    def _command(self) -> list[str]:
        s3, master, volume, filer, admin, *grpc = (str(port) for port in self._ports)
        options = {
            "dir": str(self._data_directory.absolute()),
            "bucket": self.bucket,
            "ip": LOOPBACK,
            "ip.bind": LOOPBACK,
            "s3.port": s3,
            "master.port": master,
            "volume.port": volume,
            "filer.port": filer,
            "admin.port": admin,
            "s3.port.grpc": grpc[0],
            "master.port.grpc": grpc[1],
            "volume.port.grpc": grpc[2],
            "filer.port.grpc": grpc[3],
            "admin.port.grpc": grpc[4],
            "s3.port.iceberg": "0",
            "s3.port.lance": "0",
            "s3.autoCreateBucket": "false",
            "s3.allowedOrigins": "",  # no page of another site may read an answer
            "webdav": "false",
            "admin.ui": "false",
            "master.telemetry": "false",
        }
        weed = str(Path(sys.executable).with_name("weed"))
        return [weed, "-logtostderr", "mini", *(f"-{k}={v}" for k, v in options.items())]

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return self._check()
            except (EigenpressError, OSError) as error:
                if self.pid is None or time.monotonic() > deadline:
                    raise StorageUnavailable(
                        f"The local S3 server did not start: {self._log_tail()}"
                    ) from error
            time.sleep(POLL_SECONDS)

    def _check(self) -> None:
        # A bare connection first: boto would spend its retries on a port nobody listens on yet.
        socket.create_connection((LOOPBACK, self._ports[0]), timeout=1).close()
        settings = Settings(
            s3_endpoint_url=self.endpoint_url,
            s3_access_key_id=SecretStr(self.access_key_id),
            s3_secret_access_key=SecretStr(self.secret_access_key),
        )
        ObjectStorage.from_settings(settings, self.bucket).check()

    def _remove_sockets(self) -> None:
        # SeaweedFS leaves some of its Unix sockets behind, all of them when it is killed.
        for port in self._ports:
            for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108
                path.unlink(missing_ok=True)

    def _log_tail(self) -> str:
        return self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()


@dataclass(frozen=True)
class _Credentials:
    access_key_id: str
    secret_access_key: str


def _load_or_create(path: Path) -> _Credentials:
    """The credentials kept at `path`, readable by their owner alone."""
    if path.exists():
        return _Credentials(**json.loads(path.read_bytes()))
    credentials = _Credentials(secrets.token_hex(10), secrets.token_hex(20))
    write_private(path, json.dumps(asdict(credentials)))
    return credentials


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()

"""The API on a real database, with fakes for S3 and Ray whose checks a test can make fail."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from api.app import create_app
from api.rates import Rates
from api.services import Services
from service.cluster.ray_jobs import AttemptStatus, RayCluster, Unknown
from service.datasets.receiver import Receiver
from service.domain.placement import Machine
from service.encryption import new_key
from service.estimates.estimate import Estimates
from service.inputs.checks import SubmissionChecks
from service.logs.attempt_logs import AttemptLogs
from service.logs.mask import Mask
from service.settings import Settings
from service.standalone.ports import LOOPBACK, choose_port
from service.storage.s3 import ObjectStorage
from service.store.store import Store
from tests.fixtures.storage import MemoryStorage
from tests.fixtures.waiting import wait_until

ADMIN_KEY = "ep_" + 40 * "a"

S3: dict[str, Any] = {
    "s3_endpoint_url": "http://s3.test:8333",
    "s3_access_key_id": SecretStr("key"),
    "s3_secret_access_key": SecretStr("secret"),
}


class OfflineStorage(MemoryStorage):
    """A bucket in memory; URLs are signed as in the real class."""

    def __init__(self, settings: Settings, bucket: str) -> None:
        ObjectStorage.__init__(self, settings, bucket)
        self.empty()

    def check(self) -> None:
        if self.trouble:
            raise self.trouble


class OfflineCluster(RayCluster):
    """A cluster that answers unless told otherwise, with one machine without GPUs and no jobs."""

    trouble: Exception | None = None
    nodes: tuple[Machine, ...] = (Machine({"CPU": 8}, None, 16 * 10**9, 10**11),)

    def check(self) -> None:
        if self.trouble:
            raise self.trouble

    def machines(self) -> list[Machine]:
        self.check()
        return [*self.nodes]

    def status(self, job_id: str, attempt: int) -> AttemptStatus:  # noqa: ARG002
        self.check()
        return Unknown()


def unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("Nobody is there.", request=request)


class Applications:
    """The application, for one test after the other: building its routes takes longer than a test.

    Of the settings it knows itself only the names that it serves; the others come with the
    services. So there is one for each set of names.
    """

    def __init__(self) -> None:
        self._services: Services | None = None
        self._apps: dict[tuple[str, ...], FastAPI] = {}

    def on(self, services: Services) -> FastAPI:
        """The application, whose next start is on these services."""
        self._services = services
        hosts = services.settings.served_hosts
        if hosts not in self._apps:
            self._apps[hosts] = create_app(services.settings, self._opened)
        return self._apps[hosts]

    def _opened(self, _: Settings) -> nullcontext[Services]:
        assert self._services is not None
        return nullcontext(self._services)


@pytest.fixture(scope="session")
def applications() -> Applications:
    return Applications()


@pytest.fixture
def settings(tmp_path: Path, allowed_root: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        allowed_roots=(allowed_root,),
        ray_address="http://ray.test:8265",
        **S3,
    )


@pytest.fixture
def store(settings: Settings, migrated_database: Path) -> Iterator[Store]:
    settings.data_dir.mkdir()
    shutil.copy(migrated_database, settings.data_dir / "eigenpress.db")
    with closing(Store(settings.database)) as store:
        yield store


@pytest.fixture(scope="session")
def shared_storage() -> OfflineStorage:
    """One for all tests: boto takes longer to make its clients than a test takes."""
    return OfflineStorage(Settings(**S3), "eigenpress")


@pytest.fixture
def storage(shared_storage: OfflineStorage) -> OfflineStorage:
    shared_storage.empty()
    return shared_storage


@pytest.fixture
def cluster(settings: Settings) -> Iterator[OfflineCluster]:
    # A transport of its own spares it the certificates of authorities, 15 ms.
    nobody = httpx.MockTransport(unreachable)
    with closing(OfflineCluster(settings.ray_address, settings.driver_command, nobody)) as cluster:
        yield cluster


@pytest.fixture
def services(
    settings: Settings,
    store: Store,
    storage: OfflineStorage,
    cluster: OfflineCluster,
    without_inspection: None,  # noqa: ARG001
) -> Iterator[Services]:
    with (
        SubmissionChecks(settings, storage) as checks,
        Receiver(settings, store, storage) as receiver,
    ):
        estimates = Estimates(settings, store, cluster, checks)
        rates = Rates(settings.requests_per_minute)
        logs = AttemptLogs(cluster, storage, Mask.of(settings))
        yield Services(settings, store, storage, cluster, checks, estimates, rates, logs, receiver)


@pytest.fixture
def client(services: Services, applications: Applications) -> Iterator[TestClient]:
    """A client of the application, which answers 500 as a server would instead of raising."""
    with TestClient(applications.on(services), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def guarded(services: Services) -> Services:
    """The services of a server that requires keys."""
    secrets = {"admin_key": SecretStr(ADMIN_KEY), "encryption_key": SecretStr(new_key())}
    settings = services.settings.model_copy(update={"require_keys": True, **secrets})
    return replace(services, settings=settings)


@pytest.fixture
def keyed(guarded: Services, applications: Applications) -> Iterator[TestClient]:
    """A client of a server that requires keys, without one."""
    with TestClient(applications.on(guarded), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def live(services: Services, applications: Applications) -> Iterator[httpx.Client]:
    """A client of the application on a real server; the one above cannot read endless answers."""
    port = choose_port(0, "test")
    app = applications.on(services)
    config = uvicorn.Config(app, port=port, log_level="warning", timeout_graceful_shutdown=5)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    with httpx.Client(base_url=f"http://{LOOPBACK}:{port}", trust_env=False) as client:
        yield client
    server.should_exit = True
    thread.join()

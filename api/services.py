"""The services that the routes use, opened once per process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from api.rates import Rates
from service.cluster.ray_jobs import RayCluster
from service.datasets.receiver import Receiver
from service.estimates.estimate import Estimates
from service.inputs.checks import SubmissionChecks
from service.logs.attempt_logs import AttemptLogs
from service.logs.mask import Mask
from service.settings import Settings
from service.storage.s3 import ObjectStorage
from service.store.store import Store


@dataclass(frozen=True)
class Services:
    """The services behind the routes."""

    settings: Settings
    store: Store
    storage: ObjectStorage
    cluster: RayCluster
    checks: SubmissionChecks
    estimates: Estimates
    rates: Rates
    logs: AttemptLogs
    receiver: Receiver


@contextmanager
def open_services(settings: Settings) -> Iterator[Services]:
    """Open the database and migrate it; S3 and Ray are contacted only when needed."""
    storage = ObjectStorage.from_settings(settings)
    with (
        closing(Store(settings.database)) as store,
        RayCluster(settings.ray_address, settings.driver_command) as cluster,
        SubmissionChecks(settings, storage) as checks,
        Receiver(settings, store, storage) as receiver,
    ):
        store.migrate()
        rates = Rates(settings.requests_per_minute)
        estimates = Estimates(settings, store, cluster, checks)
        logs = AttemptLogs(cluster, storage, Mask.of(settings, store=store))
        yield Services(settings, store, storage, cluster, checks, estimates, rates, logs, receiver)


async def _services(request: Request) -> Services:
    services: Services = request.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]

"""Liveness and readiness: whether the process runs, and whether its dependencies answer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter, Response

from api.access import HasKeyDep
from api.schemas.health import Check, Health, Readiness
from api.services import ServicesDep
from service.errors import EigenpressError

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the process alive?")
async def healthz() -> Health:
    """Touches nothing else. Needs no thread: slow requests may hold all of them."""
    return Health()


@router.get(
    "/readyz",
    summary="Do all dependencies answer?",
    responses={503: {"model": Readiness, "description": "At least one check failed."}},
)
def readyz(response: Response, services: ServicesDep, has_key: HasKeyDep) -> Readiness:
    """Asks the database, the bucket and Ray, all at once. Only a request with a key learns why one
    does not answer.
    """
    checks = (services.store.check, services.storage.check, services.cluster.check)
    with ThreadPoolExecutor(max_workers=len(checks)) as pool:
        outcomes = pool.map(_outcome, checks)
    shown = (each if has_key else Check(ok=each.ok) for each in outcomes)
    database, storage, cluster = shown
    ready = database.ok and storage.ok and cluster.ok
    response.status_code = 200 if ready else 503
    return Readiness(ready=ready, database=database, storage=storage, cluster=cluster)


def _outcome(check: Callable[[], None]) -> Check:
    try:
        check()
    except EigenpressError as error:
        return Check(ok=False, detail=error.detail)
    return Check(ok=True)

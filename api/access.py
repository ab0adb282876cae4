"""The rule of each route: the scope that a request's key needs.

    @router.get("/v1/jobs")
    def list_jobs(caller: ReaderDep) -> JobPage: ...

Every route has such a parameter or stands in `PUBLIC`; a test walks the routes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends

from api.services import ServicesDep
from service.domain.job import DEFAULT_TENANT
from service.domain.principal import Principal, Scope
from service.store.users import Users


@dataclass(frozen=True)
class Caller:
    """Who makes the request, and the jobs database as their tenant may use it."""

    principal: Principal
    users: Users

    @property
    def tenant(self) -> str:
        return self.principal.tenant


def needs(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    """The dependency of a route that needs a key of this scope, or of one that includes it."""

    async def caller(services: ServicesDep) -> Caller:
        principal = Principal("none", DEFAULT_TENANT, scope)
        return Caller(principal, services.store.users(principal.tenant))

    return caller


ReaderDep = Annotated[Caller, Depends(needs(Scope.READER))]
SubmitterDep = Annotated[Caller, Depends(needs(Scope.SUBMITTER))]
AdminDep = Annotated[Caller, Depends(needs(Scope.ADMIN))]

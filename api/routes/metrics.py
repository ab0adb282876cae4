"""The metrics of this process and of the jobs, for Prometheus."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from api.access import needs
from api.metrics.metrics import Metrics
from api.routes import problems
from api.services import ServicesDep
from service.domain.principal import Scope

router = APIRouter(tags=["health"], responses=problems(401, 403, 429, 503))

_bearer = HTTPBearer(auto_error=False, description="The metrics token, or an administrator's key.")
_administrator = needs(Scope.ADMIN)


def _may_read(
    request: Request,
    services: ServicesDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
) -> None:
    """Allow the token of the settings, which opens nothing else, and administrators."""
    token = services.settings.metrics_token
    given = bearer.credentials if bearer else ""
    if token is None or not hmac.compare_digest(
        given.encode(errors="replace"), token.get_secret_value().encode()
    ):
        _administrator(request, services, bearer, None)


@router.get(
    "/metrics",
    summary="Read the metrics",
    response_class=Response,
    dependencies=[Depends(_may_read)],
    responses={
        200: {
            "description": "In Prometheus's text format.",
            "content": {
                "text/plain": {
                    "schema": {"type": "string"},
                    "example": 'eigenpress_queue_jobs{tenants="default"} 2.0\n',
                }
            },
        }
    },
)
def metrics(request: Request) -> Response:
    """Of the requests to this process, and of everybody's jobs; docs/operations.md lists them."""
    found: Metrics = request.state.metrics
    return Response(found.text(), headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

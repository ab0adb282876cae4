"""The rule of each route: the scope that a request's key needs.

    @router.get("/v1/jobs")
    def list_jobs(caller: ReaderDep) -> JobPage: ...

Every route has such a parameter or stands in `PUBLIC`; a test walks the routes. A key comes in
``Authorization: Bearer``, or from a browser in the cookie that `api.pages.sign_in` sets.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from api.queries import refuse_unknown_parameters
from api.services import Services, ServicesDep
from service.domain.job import DEFAULT_TENANT, Submitter
from service.domain.principal import Principal, Scope
from service.errors import EigenpressError, KeyInvalid, KeyMissing, ScopeInsufficient
from service.store.users import Users

PUBLIC = frozenset(
    {
        "/assets/{name:path}",
        "/docs",
        "/docs/oauth2-redirect",
        "/healthz",
        "/metrics",  # has a rule of its own
        "/openapi.json",
        "/readyz",
        "/sign-in",
        "/sign-out",
        "/static-offline-docs",
    }
)
"""The paths that need no key. They hold no data of any tenant."""

COOKIE = "eigenpress_key"

ADMIN_KEY_ID = "admin"
"""The id of the key from the settings, in the audit log."""
NO_KEY_ID = "none"
"""The id in the audit log where keys are not required."""

_bearer = HTTPBearer(auto_error=False, description="An API key, ep_...", bearerFormat="ep_...")
_cookie = APIKeyCookie(name=COOKIE, auto_error=False, description="Set by /sign-in.")


@dataclass(frozen=True)
class Caller:
    """Who makes the request, and the jobs database as their tenant may use it."""

    principal: Principal
    users: Users

    @property
    def tenant(self) -> str:
        return self.principal.tenant


def needs(scope: Scope) -> Callable[..., Caller]:
    """The dependency of a route that needs a key of this scope, or of one that includes it.

    Its answer is the same for every path, whatever there is at it: it comes first. After
    it come the query parameters, which the route must know.
    """

    def caller(
        request: Request,
        services: ServicesDep,
        bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
        cookie: Annotated[str | None, Depends(_cookie)],
    ) -> Caller:
        text = bearer.credentials if bearer else cookie
        principal = _principal(text, request, services)
        if not principal.scope.includes(scope):
            raise ScopeInsufficient(
                f"The key's scope is {principal.scope}; this request needs {scope}."
            )
        request.state.principal = principal  # for the audit log
        refuse_unknown_parameters(request)
        return Caller(principal, services.store.users(principal.tenant, _submitter(principal)))

    return caller


def has_key(
    request: Request,
    services: ServicesDep,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    cookie: Annotated[str | None, Depends(_cookie)],
) -> bool:
    """Whether the request has a valid key, for a public route that tells its owner more."""
    try:
        _principal(bearer.credentials if bearer else cookie, request, services)
    except EigenpressError:  # too many requests, or no database that knows keys, too
        return False
    return True


HasKeyDep = Annotated[bool, Depends(has_key)]
ReaderDep = Annotated[Caller, Depends(needs(Scope.READER))]
SubmitterDep = Annotated[Caller, Depends(needs(Scope.SUBMITTER))]
AdminDep = Annotated[Caller, Depends(needs(Scope.ADMIN))]


def _principal(text: str | None, request: Request, services: Services) -> Principal:
    if not services.settings.require_keys:
        _refuse_beyond_loopback(request)
        return Principal(NO_KEY_ID, DEFAULT_TENANT, Scope.ADMIN)
    try:
        principal = authenticate(text, services)
    except (KeyMissing, KeyInvalid):
        count_stranger(request, services)
        raise
    services.rates.count(f"key:{principal.key_id}")
    return principal


def _submitter(principal: Principal) -> Submitter | None:
    """Whose jobs this request submits; None where keys are not required."""
    if principal.key_id == NO_KEY_ID:
        return None
    return Submitter(principal.key_id, principal.key_name)


def authenticate(text: str | None, services: Services) -> Principal:
    """Whose key this is. Raises KeyMissing and KeyInvalid."""
    if not text:
        raise KeyMissing
    admin = services.settings.admin_key
    if admin is not None and hmac.compare_digest(
        text.encode(errors="replace"), admin.get_secret_value().encode()
    ):
        return Principal(ADMIN_KEY_ID, DEFAULT_TENANT, Scope.ADMIN)
    return services.store.keys.authenticate(text)


def count_stranger(request: Request, services: Services) -> None:
    """Count a request without a valid key, by its client's address as the server sees it.

    An IPv6 client has all addresses of its /64 network, which count as one. Raises TooManyRequests.
    """
    address = "" if request.client is None else request.client.host
    with suppress(ValueError):  # the name that a test gives, or none
        found = ip_address(address)
        if isinstance(found, IPv6Address) and found.ipv4_mapped is None:
            address = str(IPv6Network((int(found), 64), strict=False))
    services.rates.count(f"address:{address}")


def _refuse_beyond_loopback(request: Request) -> None:
    """Raise KeyMissing if the request came to an address that other machines reach."""
    server: tuple[str, int | None] | None = request.scope.get("server")
    try:
        reached = None if server is None else ip_address(server[0])
    except ValueError:  # the path of a Unix socket, or the name that a test gives
        return
    if reached is not None and not reached.is_loopback:
        raise KeyMissing(
            "This server requires no keys, so it answers on loopback alone. Its operator can set "
            "EIGENPRESS_REQUIRE_KEYS and EIGENPRESS_ADMIN_KEY."
        )

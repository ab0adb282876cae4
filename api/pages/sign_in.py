"""Sign a browser in and out: by a key, or by the link that `eigenpress serve` prints."""

from __future__ import annotations

import hmac
import logging
import re
from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from api.access import COOKIE, authenticate, count_stranger
from api.pages.rendering import page
from api.pages.route import SIGN_IN, PageRoute
from api.services import Services, ServicesDep
from service.domain.sign_in import sign_in_code
from service.errors import KeyInvalid, KeyMissing

SIGN_OUT = "/sign-out"
MAX_CHARACTERS = 2000
"""Of a place to go to, and of a key."""
_QUERY = re.compile(rf"^(\S*{SIGN_IN}/?)\?.*")
"""The path of a request to sign in, below any prefix and with a slash too many, and its query."""
_LOCAL = re.compile(r"^/(?![/\\])[\x21-\x7e]*$")
"""A path on this server; `//host` and `/\\host` are other servers to a browser."""


class WithoutCode(logging.Filter):
    """Keep the code out of uvicorn's access log."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                _QUERY.sub(r"\1", each) if isinstance(each, str) else each for each in record.args
            )
        return True


logging.getLogger("uvicorn.access").addFilter(WithoutCode())

router = APIRouter(include_in_schema=False, route_class=PageRoute)

Place = Annotated[str, Query(alias="next", max_length=MAX_CHARACTERS)]


@router.get(SIGN_IN)
def sign_in(
    request: Request,
    services: ServicesDep,
    code: Annotated[str | None, Query(max_length=256)] = None,
    place: Place = "/",
) -> Response:
    """The form; or, with the code of the link that `serve` prints, the sign-in itself."""
    if code is None:
        return page(request, "sign_in.html", place=_local(place), refused=None)
    admin = services.settings.admin_key
    key = None if admin is None else admin.get_secret_value()
    if key is None or not hmac.compare_digest(
        sign_in_code(key).encode(), code.encode(errors="replace")
    ):
        count_stranger(request, services)
        refused = "The link is not valid any more; take the one that the server prints."
        return page(request, "sign_in.html", 401, place="/", refused=refused)
    return _signed_in(request, key, "/")


@router.post(SIGN_IN)
def sign_in_by_key(
    request: Request,
    services: ServicesDep,
    key: Annotated[str, Form(max_length=MAX_CHARACTERS)] = "",
    place: Annotated[str, Form(alias="next", max_length=MAX_CHARACTERS)] = "/",
) -> Response:
    """Put the key into the browser's cookie, if it is one."""
    return _by_key(request, services, key.strip(), _local(place))


def _by_key(request: Request, services: Services, key: str, place: str) -> Response:
    try:
        authenticate(key, services)
    except (KeyMissing, KeyInvalid) as error:
        count_stranger(request, services)
        return page(request, "sign_in.html", 401, place=place, refused=error.detail)
    return _signed_in(request, key, place)


@router.post(SIGN_OUT)
def sign_out(request: Request) -> Response:
    """Forget the key; it stays valid elsewhere."""
    root: str = request.scope.get("root_path", "")
    response = RedirectResponse(f"{root}{SIGN_IN}", 303)
    response.delete_cookie(COOKIE, path=f"{root}/")
    return response


def _local(place: str) -> str:
    return place if _LOCAL.match(place) else "/"


def _signed_in(request: Request, key: str, place: str) -> Response:
    root: str = request.scope.get("root_path", "")
    response = RedirectResponse(f"{root}{place}", 303)
    response.set_cookie(
        COOKIE,
        key,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
        path=f"{root}/",
    )
    response.headers["Referrer-Policy"] = "no-referrer"  # the code stays out of other logs
    response.headers["Cache-Control"] = "no-store"
    return response

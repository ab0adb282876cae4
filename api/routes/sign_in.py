"""Sign a browser in: its cookie then stands for the key."""

from __future__ import annotations

import hmac
import logging
import re
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse

from api.access import COOKIE, client_address
from api.routes import problems
from api.services import ServicesDep
from service.domain.sign_in import sign_in_code
from service.errors import KeyInvalid

PATH = "/sign-in"
_QUERY = re.compile(rf"^(\S*{PATH}/?)\?.*")
"""The path of a request to sign in, below any prefix and with a slash too many, and its query."""


class WithoutCode(logging.Filter):
    """Keep the code out of uvicorn's access log."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                _QUERY.sub(r"\1", each) if isinstance(each, str) else each for each in record.args
            )
        return True


logging.getLogger("uvicorn.access").addFilter(WithoutCode())

router = APIRouter(tags=["access"], responses=problems(401, 422, 429))


@router.get(
    PATH,
    summary="Sign a browser in",
    status_code=303,
    response_class=RedirectResponse,
    responses={303: {"description": "The browser is signed in; it goes to the first page."}},
)
def sign_in(
    request: Request,
    services: ServicesDep,
    code: Annotated[str, Query(max_length=256, description="From the link that `serve` prints.")],
) -> RedirectResponse:
    """`eigenpress serve` prints a link to here. The cookie is for this server's pages alone."""
    admin = services.settings.admin_key
    key = None if admin is None else admin.get_secret_value()
    if key is None or not hmac.compare_digest(
        sign_in_code(key).encode(), code.encode(errors="replace")
    ):
        services.rates.count(f"address:{client_address(request)}")
        raise KeyInvalid("The link is not valid any more; take the one that the server prints.")
    root: str = request.scope.get("root_path", "")
    response = RedirectResponse(f"{root}/", status_code=303)
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

"""What a page answers to an error: a page, or the way to sign in."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.responses import RedirectResponse

from api.errors import invalid_request, status_of
from api.pages.rendering import page
from api.schemas.problems import Problem
from service.errors import EigenpressError, KeyInvalid, KeyMissing

SIGN_IN = "/sign-in"


class PageRoute(APIRoute):
    """A route of the web page."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def answered(request: Request) -> Response:
            request.scope["query_string"] = without_blanks(request.scope["query_string"])
            try:
                return await answer(request)
            except (KeyMissing, KeyInvalid):
                return to_sign_in(request)
            except EigenpressError as error:
                return refused(request, status_of(type(error)), error)
            except RequestValidationError as error:
                refusal = invalid_request(request, error)
                return refused(request, refusal.status_code, refusal.problem)

        return answered


def refused(request: Request, status: int, problem: EigenpressError | Problem) -> Response:
    """A page that says why; or where htmx asks for a part of a page, the words for its notice."""
    if "hx-request" not in request.headers:
        return page(request, "error.html", status, problem=problem)
    notice = page(request, "notice.html", status, problem=problem)
    notice.headers["HX-Retarget"] = "#notice"
    notice.headers["HX-Reswap"] = "innerHTML"
    return notice


def without_blanks(query: bytes) -> bytes:
    """The query without the fields that its form left empty.

    >>> without_blanks(b"state=running&name=&label=team%3Dml")
    b'state=running&label=team%3Dml'
    """
    return urlencode(parse_qsl(query.decode("latin-1"))).encode()


def to_sign_in(request: Request) -> Response:
    """To the page that asks for a key, and from there to where the visitor wanted to go.

    A part of a page that htmx asks for cannot show it: the whole page goes there.
    """
    root: str = request.scope.get("root_path", "")
    path = request.url.path.removeprefix(root)
    wanted = path + (f"?{request.url.query}" if request.url.query else "")
    if request.method != "GET" or "hx-request" in request.headers:
        wanted = "/"
    place = f"{root}{SIGN_IN}?next={quote(wanted, safe='')}"
    if "hx-request" in request.headers:
        return Response(status_code=401, headers={"HX-Redirect": place})
    return RedirectResponse(place, 303, headers={"Cache-Control": "no-store"})

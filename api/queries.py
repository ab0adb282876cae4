"""A request has no query parameter that its route does not know: a misspelt filter is no filter."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError

from service.errors import InvalidParameter

PREFIX = "/v1/"
"""Of the routes that are strict; a browser may come to a page from anywhere."""


def refuse_unknown_parameters(request: Request) -> None:
    """Raise RequestValidationError if the request has one that its route does not know."""
    route = request.scope["route"]
    if not request.scope["query_string"] or not route.path.startswith(PREFIX):
        return
    known = sorted(_known(route.dependant))
    takes = f"this request takes {', '.join(known) or 'none'}"
    errors = [
        {
            "type": InvalidParameter.code,
            "loc": ("query", name),
            "msg": f"There is no such query parameter; {takes}",
            "input": None,
        }
        for name in request.query_params
        if name not in known
    ]
    if errors:
        raise RequestValidationError(errors)


def _known(dependant: Dependant) -> Iterator[str]:
    """The names that the route takes by itself and through its dependencies."""
    yield from (field.alias for field in dependant.query_params)
    for each in dependant.dependencies:
        yield from _known(each)

"""From errors to RFC 9457 problem responses.

service.errors      UserError 422, NotFound 404, Conflict 409, DatasetTooLarge 413,
                        KeyMissing and KeyInvalid 401, ScopeInsufficient 403,
                        TooManyRequests, TooManyFollowers and QuotaExceeded 429,
                        ObjectMissing, ArtifactCorrupt 410, InfrastructureError 503
pydantic            422 with `param` naming the field; body that is not JSON 400 or 415
starlette           unknown path 404, wrong method 405, body too large 413 or too slow 408
anything else       500, without the cause, which is in the server's log
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic_core import core_schema
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from api.request_ids import request_id_header
from api.schemas.problems import Problem, ProblemItem
from service.client.versions import VERSION, VERSION_HEADER
from service.domain.credentials import CredentialKind
from service.domain.spec.stored import field_path
from service.errors import (
    ArtifactCorrupt,
    Conflict,
    DatasetTooLarge,
    EigenpressError,
    InfrastructureError,
    InvalidParameter,
    KeyInvalid,
    KeyMissing,
    NotFound,
    ObjectMissing,
    QuotaExceeded,
    ScopeInsufficient,
    TooManyFollowers,
    TooManyRequests,
    UserError,
)
from service.printable import printable, shortened

logger = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"
RETRY_AFTER_SECONDS = 10
MAX_LISTED_ERRORS = 20
MAX_PATH_CHARACTERS = 500
QUOTE = "'"
"""Pydantic puts it around the name of a discriminator."""

PYDANTIC_CODES = frozenset(get_args(core_schema.ErrorType))
"""Types of pydantic's own errors; any other type is the code that one of our validators raised."""

PLAIN_MESSAGES = {
    "extra_forbidden": "There is no such field",
    "model_attributes_type": "Input should be an object",
    "too_short": "Input should have at least one item",
    "tuple_type": "Input should be an array",
    "union_tag_not_found": "Field required",
}
"""Replacements for messages of pydantic that name types of Python instead of JSON."""

TAKES_SECRETS = frozenset({"put_credential"})
"""Operations whose problems repeat nothing of the body."""

BODY_TAGS = frozenset(CredentialKind)
"""The tags of the one body that is a union itself."""

HTTP_CODES = {400: "malformed_json", 408: "body_too_slow", 413: "body_too_large"}


class ProblemResponse(JSONResponse):
    """One problem, under its own media type."""

    media_type = PROBLEM_JSON

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        instance: str,
        param: str | None = None,
        errors: Iterable[ProblemItem] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        instance = _shown_path(instance)
        problem = Problem(
            type=f"urn:eigenpress:problem:{code}",
            title=code.replace("_", " ").capitalize(),
            status=status,
            detail=detail,
            code=code,
            param=param,
            instance=instance,
            errors=list(errors),
        )
        super().__init__(problem.model_dump(mode="json"), status_code=status, headers=headers)
        self.problem = problem


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` with a problem."""
    app.exception_handlers |= {
        EigenpressError: _on_service_error,
        RequestValidationError: _on_invalid_request,
        HTTPException: _on_http_error,
        Exception: _on_defect,
    }


def status_of(error: type[EigenpressError]) -> HTTPStatus:
    """The HTTP status for an error of this class."""
    if issubclass(error, UserError):
        return HTTPStatus.UNPROCESSABLE_ENTITY
    if issubclass(error, KeyMissing | KeyInvalid):
        return HTTPStatus.UNAUTHORIZED
    if issubclass(error, ScopeInsufficient):
        return HTTPStatus.FORBIDDEN
    if issubclass(error, NotFound):
        return HTTPStatus.NOT_FOUND
    if issubclass(error, DatasetTooLarge):
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    if issubclass(error, Conflict):
        return HTTPStatus.CONFLICT
    if issubclass(error, TooManyRequests | TooManyFollowers | QuotaExceeded):
        return HTTPStatus.TOO_MANY_REQUESTS
    if issubclass(error, ObjectMissing | ArtifactCorrupt):
        return HTTPStatus.GONE
    if issubclass(error, InfrastructureError):
        return HTTPStatus.SERVICE_UNAVAILABLE
    return HTTPStatus.INTERNAL_SERVER_ERROR


async def _on_service_error(request: Request, error: EigenpressError) -> ProblemResponse:
    status = status_of(type(error))
    if status >= 500:
        logger.warning("%s %r: %s: %r", request.method, request.url.path, error.code, error.detail)
    return ProblemResponse(
        status,
        error.code,
        error.detail,
        param=error.param,
        instance=request.url.path,
        headers=_headers(error, status),
    )


def _headers(error: EigenpressError, status: HTTPStatus) -> dict[str, str]:
    if isinstance(error, TooManyRequests):
        return {"Retry-After": str(error.retry_after_seconds)}
    if status == HTTPStatus.UNAUTHORIZED:
        return {"WWW-Authenticate": "Bearer"}
    recovers = status == HTTPStatus.SERVICE_UNAVAILABLE and error.retryable
    if recovers or isinstance(error, TooManyFollowers):
        return {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return {}


async def _on_invalid_request(request: Request, error: RequestValidationError) -> ProblemResponse:
    return invalid_request(request, error)


def invalid_request(request: Request, error: RequestValidationError) -> ProblemResponse:
    """The problem of a request whose fields pydantic refuses."""
    found = error.errors()[:MAX_LISTED_ERRORS]
    instance = request.url.path
    first = found[0]
    if first["type"] == "json_invalid":
        detail = f"The body is not JSON: {first['ctx']['error']} at character {first['loc'][1]}"
        return ProblemResponse(400, HTTP_CODES[400], detail, instance=instance)
    if first["loc"] == ("body",) and not _is_json(request) and first["type"] != "missing":
        detail = "The body must be JSON, sent with the header 'Content-Type: application/json'"
        return ProblemResponse(415, "unsupported_media_type", detail, instance=instance)
    shown = getattr(request.scope.get("route"), "name", None) not in TAKES_SECRETS
    items = problem_items(found, shown=shown)
    return ProblemResponse(
        422, items[0].code, items[0].detail, param=items[0].param, instance=instance, errors=items
    )


def problem_items(found: Sequence[Mapping[str, Any]], *, shown: bool = True) -> list[ProblemItem]:
    """One for each of pydantic's errors in a body, whose locations begin with "body".

    `shown` is whether they may repeat the offending values.
    """
    return [_item(each, shown=shown) for each in found if not _is_consequence(each, found)]


def _is_json(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().endswith("json")


def _is_consequence(error: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> bool:
    """Whether an error inside this field caused it: invalid items make an array "too short"."""
    depth = len(error["loc"])
    return any(len(o["loc"]) > depth and o["loc"][:depth] == error["loc"] for o in found)


def _item(error: Mapping[str, Any], *, shown: bool) -> ProblemItem:
    """The mistake; with the offending value, if it may be shown."""
    kind: str = error["type"]
    param = param_of(error["loc"])
    if kind.startswith("union_tag_"):
        discriminator = error["ctx"]["discriminator"].strip(QUOTE)
        param = f"{param}.{discriminator}" if param else discriminator
    message = PLAIN_MESSAGES.get(kind, error["msg"])
    if kind == "union_tag_invalid":
        message = f"Input should be one of {error['ctx']['expected_tags']}"
    return ProblemItem(
        code=InvalidParameter.code if kind in PYDANTIC_CODES else kind,
        detail=f"{param or error['loc'][0]}: {message}{_shown(error) if shown else ''}",
        param=param,
    )


def param_of(location: Sequence[str | int]) -> str | None:
    """The field as the user wrote it: no "body" or "query" in front, no tags of unions.

    ``("body", "model", "local", "path")`` is ``model.path``; None is the body as a whole.
    """
    place, *parts = location
    if place == "body":
        inside = parts[1:] if parts and parts[0] in BODY_TAGS else parts
        return ".".join(map(_name, field_path(inside))) or None
    return ".".join(_name(str(part)) for part in parts) or None


def _shown(error: Mapping[str, Any]) -> str:
    """The offending value, if it is a scalar and so fits into a sentence."""
    value = error.get("ctx", {}).get("tag", error["input"])
    if error["type"] == "missing" or not isinstance(value, str | int | float):
        return ""
    return f" (got {shortened(json.dumps(value))})"


def _name(field: str) -> str:
    return printable(shortened(field))


def _shown_path(path: str) -> str:
    return printable(shortened(path, MAX_PATH_CHARACTERS))


async def _on_http_error(request: Request, error: HTTPException) -> ProblemResponse:
    path = _shown_path(request.url.path)
    details = {
        400: "The body cannot be read as JSON",
        404: f"There is nothing at {path}",
        405: f"{shortened(request.method)} is not allowed at {path}",
    }
    status = HTTPStatus(error.status_code)
    return ProblemResponse(
        status,
        HTTP_CODES.get(status, status.name.lower()),
        details.get(status, error.detail),
        instance=path,
        headers=error.headers,
    )


async def _on_defect(request: Request, error: Exception) -> ProblemResponse:
    # The server prints the traceback: starlette raises the error again after this response.
    logger.error("%s %r failed: %r", request.method, request.url.path, error)
    return ProblemResponse(
        500,
        EigenpressError.code,
        "The server has a defect and could not answer; its log holds the traceback",
        instance=request.url.path,
        # Starlette sends this one past all middleware.
        headers={VERSION_HEADER: VERSION, **request_id_header()},
    )

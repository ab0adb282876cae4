"""The routes, one module per subject. What calls the store, which is synchronous, is a plain
function or calls it in a thread.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path

from api.schemas.jobs import JOB_ID_EXAMPLE
from api.schemas.problems import Problem

JobId = Annotated[
    str, Path(description="The job's id.", openapi_examples={"a job": {"value": JOB_ID_EXAMPLE}})
]

_DESCRIPTIONS = {
    400: "The body is not JSON.",
    401: "The request has no valid key.",
    403: "The key does not allow this.",
    404: "There is no such thing, or it is another tenant's.",
    409: "The state of things does not allow this.",
    410: "The artifact has been removed from the bucket.",
    408: "The body took too long to arrive.",
    413: "The body is larger than this server accepts.",
    415: "The body is not sent as this route needs it: most need application/json.",
    422: "A parameter or an input is at fault; `param` names it.",
    429: "There were too many requests, or the tenant has as much as it may have.",
    503: "The database or the bucket is unavailable; `Retry-After` if it may recover.",
}


def guarded(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem responses of routes that need a key: the common ones, and these."""
    return problems(401, 403, 422, 429, 503, *statuses)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem responses of a route, for the OpenAPI document."""
    return {status: {"model": Problem, "description": _DESCRIPTIONS[status]} for status in statuses}


def makes(parameter: str, *operations: str, named: str = "id") -> dict[int | str, dict[str, Any]]:
    """The links of an answer 201 to the operations on what it made, for the OpenAPI document.

    Each takes in `parameter` of its path what the answer has in the field `named`.
    """
    parameters = {parameter: f"$response.body#/{named}"}
    links = {each: {"operationId": each, "parameters": parameters} for each in operations}
    return {201: {"links": links}}

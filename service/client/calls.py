"""A request to the API as a plain value: what to send, and how to read the answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote

Answer = TypeVar("Answer")

JSON = {"Content-Type": "application/json"}


class NotOurs(ValueError):
    """The answer is not one that an Eigenpress server gives."""


@dataclass(frozen=True)
class Reply:
    """What came back from the server, unless it is a problem; `body` is None if it is no JSON."""

    status: int
    headers: Mapping[str, str]
    body: Any
    text: str = ""


@dataclass(frozen=True)
class Call(Generic[Answer]):
    """A request, and the function that reads its answer, which may raise NotOurs."""

    method: str
    path: str
    read: Callable[[Reply], Answer]
    params: Mapping[str, Any] = field(default_factory=dict)
    content: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def sending(
    method: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Call[Any]:
    """A request with a body, whose answer is an object."""
    # httpx would fail on text without UTF-8; the server refuses it, and names the field.
    content = json.dumps(dict(body))
    return Call(method, path, as_object, content=content, headers={**(headers or {}), **JSON})


def as_object(reply: Reply) -> Any:
    """The answer, which is an object. Raises NotOurs."""
    if not isinstance(reply.body, dict):
        raise NotOurs
    return reply.body


def as_page(reply: Reply) -> str:
    """The answer, which is HTML. Raises NotOurs."""
    if not reply.headers.get("content-type", "").startswith("text/html"):
        raise NotOurs
    return reply.text


def job_path(job_id: str, *rest: str) -> str:
    """The path of a job, or of what is below it."""
    return "/".join(
        ["/v1/jobs", *(quote(part, safe="", errors="replace") for part in (job_id, *rest))]
    )

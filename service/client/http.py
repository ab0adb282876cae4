"""Between operations and HTTP: requests, answers and their errors, for both kinds of clients."""

from __future__ import annotations

from typing import Any, TypeVar

import httpx

from service.client.calls import Call, NotOurs, Reply
from service.client.errors import ApiProblem, ApiUnreachable
from service.client.versions import USER_AGENT

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]")
DIRECT: dict[str, None] = {f"all://{host}": None for host in LOOPBACK_HOSTS}
"""Where the environment's proxies are not used: on this machine."""

Answer = TypeVar("Answer")


def headers_of(key: str | None) -> dict[str, str]:
    """The headers of every request; the key tells the server who asks."""
    ours = {"User-Agent": USER_AGENT}
    return ours if key is None else ours | {"Authorization": f"Bearer {key}"}


def open_http(timeout: float, **options: Any) -> httpx.Client:
    """An HTTP client that uses the environment's proxies, except for this machine."""
    return httpx.Client(timeout=timeout, mounts=DIRECT, **options)


def arguments_of(call: Call[Any]) -> dict[str, Any]:
    """What httpx needs to send it."""
    return {
        "method": call.method,
        "url": call.path,
        "params": dict(call.params),
        "content": call.content,
        "headers": dict(call.headers),
    }


def read(call: Call[Answer], response: httpx.Response, base_url: str) -> Answer:
    """The answer. Raises ApiProblem, also for one that no Eigenpress server gives."""
    body = _json(response)
    if not response.is_error:
        try:
            return call.read(Reply(response.status_code, response.headers, body, response.text))
        except NotOurs:
            pass
    elif isinstance(body, dict) and isinstance(body.get("code"), str):
        detail = str(body.get("detail") or body.get("title") or body["code"])
        raise ApiProblem(body["code"], detail, body.get("param"), response.status_code)
    elif call.method == "HEAD":
        raise ApiProblem(*_WITHOUT_BODY, None, response.status_code)
    status = response.status_code
    detail = f"{base_url} answers with HTTP {status}, but is not an Eigenpress server"
    raise ApiProblem("unexpected_answer", detail, None, status)


def unreachable(error: httpx.TransportError, base_url: str) -> ApiUnreachable:
    reason = str(error) or type(error).__name__
    return ApiUnreachable(
        f"no answer from {base_url}: {reason}", sent=not isinstance(error, _UNSENT)
    )


_WITHOUT_BODY = ("refused", "the server refused the request; ask with GET for the reason")

_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)
"""Errors after which the server cannot have seen the request."""


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None

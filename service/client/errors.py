"""The errors of a client.

    ClientError
    ├── ApiProblem        the API answered with a problem (RFC 9457)
    └── ApiUnreachable    nothing answered

They are separate from `service.errors`, the errors of jobs: the job may be fine when only the
server cannot be reached.
"""

from __future__ import annotations


class ClientError(Exception):
    """A request to the API did not succeed."""


class ApiProblem(ClientError):
    """The API refused a request, or could not carry it out; `code` is stable, `detail` is not."""

    def __init__(self, code: str, detail: str, param: str | None, status: int) -> None:
        self.code = code
        self.detail = detail
        self.param = param
        self.status = status
        super().__init__(detail)


class ApiUnreachable(ClientError):
    """Nothing answered at the API's address; `sent` tells whether the request may have arrived."""

    def __init__(self, detail: str, *, sent: bool = False) -> None:
        self.sent = sent
        super().__init__(detail)


TEMPORARY = frozenset({429, 502, 503, 504})
"""Statuses of a server that may do later what it has refused."""


def is_outage(error: ClientError) -> bool:
    """Whether it may be temporary: nothing answered, or the status is one of `TEMPORARY`."""
    return isinstance(error, ApiUnreachable) or getattr(error, "status", None) in TEMPORARY


def may_have_worked(error: ClientError) -> bool:
    """Whether the request may have had its effect though it failed."""
    if isinstance(error, ApiUnreachable):
        return error.sent
    return isinstance(error, ApiProblem) and (
        error.code == "database_unavailable" or error.status in {502, 504}
    )

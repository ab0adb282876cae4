"""The Ray cluster, through the documented REST form of its Jobs API.

Ray's own client is not used: it sends requests without a timeout, and a dashboard that hangs would
hang the dispatcher with it. Here every call ends, and ends in one of two ways: the answer, or
ClusterUnavailable. Nothing secret is sent; a driver reads its settings from its node's environment.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from service.errors import ClusterUnavailable, SubmissionRefused

CONNECT_SECONDS = 3.0
READ_SECONDS = 10.0
SUBMIT_SECONDS = 20.0
"""A dashboard asked to submit a job may itself wait 10 s for an agent."""

TOKEN_VARIABLE = "RAY_AUTH_TOKEN"  # noqa: S105  (Ray's own name for it)
TOKEN_PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"  # noqa: S105
MAX_LOG_LINE_CHARACTERS = 1000

_ENDED = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})

_EXIT_CODE = "The driver's exit code: "


@dataclass(frozen=True)
class Active:
    """The attempt's driver may still run, or start."""


@dataclass(frozen=True)
class Ended:
    """The attempt's driver has ended, for the reason that Ray reports."""

    status: str
    """STOPPED, SUCCEEDED or FAILED. Not reliable: see `exit_code_in`."""
    error_type: str | None = None
    """Of Ray's JobErrorType."""
    message: str = ""


@dataclass(frozen=True)
class Unknown:
    """The cluster does not know the attempt, or was restarted since."""


AttemptStatus = Active | Ended | Unknown


class Cluster(Protocol):
    """What the dispatcher needs of a cluster. Every method raises ClusterUnavailable."""

    def check(self) -> None:
        """Raise unless the cluster answers."""

    def submit(self, job_id: str, attempt: int, name: str | None = None) -> None:
        """Start the driver of an attempt; doing so again changes nothing.

        Raises SubmissionRefused when the cluster answers but refuses.
        """

    def status(self, job_id: str, attempt: int) -> AttemptStatus:
        """Whether the attempt's driver may still run, and if not, how it ended."""

    def stop(self, job_id: str, attempt: int) -> None:
        """Tell the attempt's driver to stop, without waiting; no effect when it is not active.

        One that does not stop by itself is killed after some seconds.
        """

    def log_tail(self, job_id: str, attempt: int, lines: int = 30) -> str:
        """The last lines that the driver printed; empty when there are none."""

    def forget(self, job_id: str, attempt: int) -> None:
        """Delete Ray's records of an attempt that has ended; no effect on one that is active."""


class RayCluster:
    """A Ray cluster, named by the address of its dashboard. Connects when first used."""

    def __init__(
        self,
        address: str,
        driver_command: str,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Job id and attempt are appended to `driver_command`; `transport` is for tests.

        Raises ClusterUnavailable if there should be a token and it cannot be read.
        """
        self.dashboard_url = address.rstrip("/")
        self._driver_command = driver_command
        self._http = httpx.Client(
            base_url=self.dashboard_url,
            headers=authorization(),
            transport=transport,
            trust_env=False,  # a proxy to the internet is no way to the cluster
        )

    def __enter__(self) -> RayCluster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def check(self) -> None:
        if "ray_version" not in self._json(self._request("GET", "/api/version")):
            raise self._not_ray()

    def submit(self, job_id: str, attempt: int, name: str | None = None) -> None:
        driver = f"{self._driver_command} {shlex.quote(job_id)} {attempt:d}"
        body = {
            "entrypoint": f'{driver}; code=$?; echo "{_EXIT_CODE}$code"; exit $code',
            "submission_id": submission_id(job_id, attempt),
            "metadata": {
                "job_name": name or job_id,
                "eigenpress_job": job_id,
                "eigenpress_attempt": str(attempt),
            },
        }
        response = self._request(
            "POST", "/api/jobs/", json=body, allowed=(400, 500), seconds=SUBMIT_SECONDS
        )
        # Ray answers 500, by way of its agent, or 400 to an id that it knows.
        if response.is_success or self.status(job_id, attempt) != Unknown():
            return
        if response.status_code == 400:
            raise SubmissionRefused(f"Ray refuses the job: {_gist(response)}")
        raise ClusterUnavailable(f"Ray could not take the job: {_gist(response)}")

    def status(self, job_id: str, attempt: int) -> AttemptStatus:
        response = self._request("GET", _path(job_id, attempt), allowed=(404,))
        if response.status_code == 404:
            return Unknown()
        details = self._json(response)
        status = str(details.get("status"))
        if status not in _ENDED:
            return Active()
        return Ended(status, details.get("error_type"), str(details.get("message") or ""))

    def stop(self, job_id: str, attempt: int) -> None:
        self._request("POST", f"{_path(job_id, attempt)}/stop", allowed=(404,))

    def log_tail(self, job_id: str, attempt: int, lines: int = 30) -> str:
        response = self._request("GET", f"{_path(job_id, attempt)}/logs", allowed=(404,))
        if response.status_code == 404:
            return ""
        printed = str(self._json(response).get("logs") or "").splitlines()
        return "\n".join(line[:MAX_LOG_LINE_CHARACTERS] for line in printed[-lines:])

    def forget(self, job_id: str, attempt: int) -> None:
        # Ray answers 500 when it is active. The log file stays on its node until Ray ends.
        response = self._request("DELETE", _path(job_id, attempt), allowed=(404, 500))
        if response.status_code == 500 and "non-terminal state" not in response.text:
            raise ClusterUnavailable(f"Ray could not forget the job: {_gist(response)}")

    def _request(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        allowed: tuple[int, ...] = (),
        seconds: float | None = None,
    ) -> httpx.Response:
        timeout = httpx.Timeout(seconds or READ_SECONDS, connect=CONNECT_SECONDS)
        try:
            response = self._http.request(method, path, json=json, timeout=timeout)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise ClusterUnavailable(
                f"Ray at {self.dashboard_url} does not answer: {str(error) or type(error).__name__}"
            ) from error
        if not response.is_success and response.status_code not in allowed:
            raise ClusterUnavailable(
                f"Ray at {self.dashboard_url} answers {response.status_code} to {method} {path}: "
                f"{_gist(response)}"
            )
        return response

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError as error:
            raise self._not_ray() from error

    def _not_ray(self) -> ClusterUnavailable:
        return ClusterUnavailable(f"What answers at {self.dashboard_url} is not a Ray dashboard.")


def authorization() -> dict[str, str]:
    """The headers for a guarded cluster; its token is where Ray looks for it.

    That is in one variable, else in the file that the other names. Raises ClusterUnavailable.
    """
    token, path = os.environ.get(TOKEN_VARIABLE), os.environ.get(TOKEN_PATH_VARIABLE)
    if not token and path:
        try:
            token = Path(path).read_text().strip()
        except OSError as error:
            raise ClusterUnavailable(
                f"{TOKEN_PATH_VARIABLE} names {path}, which cannot be read: {error.strerror}"
            ) from error
    return {"Authorization": f"Bearer {token}"} if token else {}


def submission_id(job_id: str, attempt: int) -> str:
    """The name of an attempt on the cluster."""
    return f"{job_id}-{attempt}"


def exit_code_in(printed: str) -> int | None:
    """The driver's exit code, from the end of its log; None when the log does not have it.

    Ray's status is not enough: where its workers reap their children by themselves (its setting
    `kill_child_processes_on_worker_exit_with_raylet_subreaper`), it takes every end for a success.
    A signal's number comes as 128 more, as a shell has it.
    """
    found = re.search(rf"{_EXIT_CODE}(\d+)\s*$", printed)
    return int(found[1]) if found else None


def _path(job_id: str, attempt: int) -> str:
    return f"/api/jobs/{submission_id(job_id, attempt)}"


def _gist(response: httpx.Response) -> str:
    # Ray answers errors with a traceback, or two in one; what happened is near its end.
    lines = [line for line in response.text.splitlines() if any(map(str.isalpha, line))]
    return lines[-1].strip()[:MAX_LOG_LINE_CHARACTERS] if lines else response.reason_phrase

"""The Ray cluster, through the documented REST interface of its Jobs API.

Ray's own client sends requests without a timeout, so a dashboard that hangs would block the
dispatcher. Here every call has a timeout: it returns the answer or raises ClusterUnavailable. What
the machines have is asked of the dashboard's own interface, which is not documented.
Submissions carry no secrets; a driver reads its settings from its node's environment.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import httpx

from service.cluster.ray_logs import LogReader, ray_logs
from service.domain.placement import ACCELERATOR_LABEL, Machine
from service.errors import ClusterUnavailable, SubmissionRefused

CONNECT_SECONDS = 3.0
READ_SECONDS = 10.0
SUBMIT_SECONDS = 20.0
"""To submit a job, the dashboard itself may wait 10 s for an agent."""
LOOK_SECONDS = 2.0
"""For a look at the machines, which somebody waits for."""

TOKEN_MODE = {"RAY_AUTH_MODE": "token"}
"""The variable with which every process of a Ray cluster asks for the token."""
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"  # noqa: S105  (Ray's own name for it)
TOKEN_PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"  # noqa: S105
MAX_LOG_LINE_CHARACTERS = 1000

_ENDED = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})

_EXIT_CODE = "The driver's exit code: "


@dataclass(frozen=True)
class Active:
    """The attempt's driver runs, or may still start."""


@dataclass(frozen=True)
class Ended:
    """The attempt's driver has ended, for the reason that Ray reports."""

    status: str
    """STOPPED, SUCCEEDED or FAILED. Not reliable: see `exit_code_in`."""
    error_type: str | None = None
    """A member of Ray's JobErrorType."""
    message: str = ""


@dataclass(frozen=True)
class Unknown:
    """The cluster does not know the attempt; it may have been restarted since."""


AttemptStatus = Active | Ended | Unknown


class Cluster(Protocol):
    """The dispatcher's interface to a cluster. Every method may raise ClusterUnavailable."""

    def check(self) -> None:
        """Raise unless the cluster answers."""

    def submit(self, job_id: str, attempt: int, name: str | None = None) -> None:
        """Start the driver of an attempt; a repeated call changes nothing.

        Raises SubmissionRefused when the cluster answers but refuses.
        """

    def status(self, job_id: str, attempt: int) -> AttemptStatus:
        """Whether the attempt's driver may still run, and if not, how it ended."""

    def stop(self, job_id: str, attempt: int) -> None:
        """Ask the attempt's driver to stop, without waiting; no effect if it is not active.

        Ray kills a driver that does not stop within some seconds.
        """

    def log_tail(self, job_id: str, attempt: int, lines: int = 30) -> str:
        """The last lines that the driver printed; empty if there are none."""

    def logs(self, job_id: str, attempt: int) -> Mapping[str, LogReader]:
        """The logs of the attempt's driver and workers, by the names of these processes."""

    def forget(self, job_id: str, attempt: int) -> None:
        """Delete Ray's records of an attempt that has ended; no effect on one that is active."""


class RayCluster:
    """The Ray cluster whose dashboard has this address. Connects on first use."""

    def __init__(
        self,
        address: str,
        driver_command: str,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """Job id and attempt are appended to `driver_command`; `transport` is for tests.

        Raises ClusterUnavailable if the token cannot be read.
        """
        self.dashboard_url = address.rstrip("/")
        self._driver_command = driver_command
        self._http = httpx.Client(
            base_url=self.dashboard_url,
            headers=authorization(),
            transport=transport,
            trust_env=False,  # proxies to the internet do not reach the cluster
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
        # Ray answers a known id with 400, or with 500 if its agent answers.
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

    def logs(self, job_id: str, attempt: int) -> Mapping[str, LogReader]:
        return ray_logs(self._http, submission_id(job_id, attempt))

    def forget(self, job_id: str, attempt: int) -> None:
        # Ray answers 500 if the driver is active. The log file stays on its node until Ray ends.
        response = self._request("DELETE", _path(job_id, attempt), allowed=(404, 500))
        if response.status_code == 500 and "non-terminal state" not in response.text:
            raise ClusterUnavailable(f"Ray could not forget the job: {_gist(response)}")

    def machines(self) -> list[Machine]:
        """The machines that are alive. Raises ClusterUnavailable."""
        response = self._request("GET", "/nodes?view=summary", seconds=LOOK_SECONDS)
        try:
            nodes = self._json(response)["data"]["summary"]
            return [_machine(node) for node in nodes if node["raylet"]["state"] == "ALIVE"]
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise ClusterUnavailable(
                f"Ray at {self.dashboard_url} does not say which machines it has: "
                f"{type(error).__name__}: {error}"
            ) from error

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
        return ClusterUnavailable(f"The server at {self.dashboard_url} is not a Ray dashboard.")


def authorization(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The headers for a cluster that requires a token; empty if no token is set.

    As in Ray, RAY_AUTH_TOKEN in the environment holds the token, or RAY_AUTH_TOKEN_PATH names its
    file. Raises ClusterUnavailable if the file cannot be read.
    """
    token, path = environment.get(TOKEN_VARIABLE), environment.get(TOKEN_PATH_VARIABLE)
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
    """The driver's exit code, from the end of its log; None if the log lacks it.

    Ray's status is not reliable: with its setting
    `kill_child_processes_on_worker_exit_with_raylet_subreaper`, it reports every exit as a success.
    After a signal the code is 128 plus the signal's number, as in a shell.
    """
    found = re.search(rf"{_EXIT_CODE}(\d+)\s*$", printed)
    return int(found[1]) if found else None


def _path(job_id: str, attempt: int) -> str:
    return f"/api/jobs/{submission_id(job_id, attempt)}"


def _machine(node: Mapping[str, Any]) -> Machine:
    """A machine as the dashboard describes it: what its agent reports may be missing as yet."""
    raylet, memory = node["raylet"], node.get("mem")
    disks = [each["total"] for each in (node.get("disk") or {}).values()]
    gpus = [gpu["memoryTotal"] << 20 for gpu in node.get("gpus") or ()]
    return Machine(
        {name: float(amount) for name, amount in raylet["resourcesTotal"].items()},
        raylet["labels"].get(ACCELERATOR_LABEL),
        memory_bytes=memory[0] if memory else None,
        disk_bytes=min((size for size in disks if size > 1), default=None),  # 1 in Kubernetes
        gpu_bytes=min(gpus, default=None),
    )


def _gist(response: httpx.Response) -> str:
    # Ray answers errors with one or two tracebacks; the cause is near the end.
    lines = [line for line in response.text.splitlines() if any(map(str.isalpha, line))]
    return lines[-1].strip()[:MAX_LOG_LINE_CHARACTERS] if lines else response.reason_phrase

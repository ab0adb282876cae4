"""The logs of an attempt's driver and workers, through the REST interface of Ray's state API.

Ray keeps each log as a file on the machine of its process, and sends it from the beginning. The
file stays when its process has ended, until the machine or Ray goes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import httpx

from service.errors import ClusterUnavailable, LogNotFound

TIMEOUT = httpx.Timeout(10.0, connect=3.0)
"""For each part of an answer."""
AGENT_SECONDS = 8
"""How long the dashboard waits for the machine of a log."""
MAX_ACTORS = 10_000
WORKER_NAME = re.compile(r"/(worker-\d+)$")

LogReader = Callable[[], Generator[bytes, None, None]]
"""Sends a log from its beginning. Raises LogNotFound, for example if its machine is gone, and
ClusterUnavailable."""


def ray_logs(http: httpx.Client, submission: str) -> dict[str, LogReader]:
    """A reader for each log of the attempt with this name. Raises ClusterUnavailable.

    A worker's log is its standard error output. Ray repeats both outputs of all workers in the
    driver's log, but leaves out lines that several of them print.
    """
    found: dict[str, LogReader] = {"driver": partial(_read_driver, http, submission)}
    for actor in _actors(http, submission):
        if name := WORKER_NAME.search(str(actor.get("name"))):
            found[name[1]] = partial(_read, http, actor_id=actor["actor_id"], suffix="err")
    return found


def _read_driver(http: httpx.Client, submission: str) -> Generator[bytes, None, None]:
    try:
        response = http.get(f"/api/jobs/{submission}", timeout=TIMEOUT)
        if response.status_code == httpx.codes.NOT_FOUND:
            raise LogNotFound("Ray does not know the attempt.")
        response.raise_for_status()
        node_id = response.json().get("driver_node_id")
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, AttributeError) as error:
        raise ClusterUnavailable(f"Ray does not describe the driver: {_named(error)}") from error
    if not node_id:
        raise LogNotFound("The driver has not begun.")
    yield from _read(http, node_id=node_id, filename=f"job-driver-{submission}.log")


def _actors(http: httpx.Client, namespace: str) -> list[dict[str, Any]]:
    query: dict[str, str | int] = {
        "filter_keys": "ray_namespace",
        "filter_predicates": "=",
        "filter_values": namespace,
        "limit": MAX_ACTORS,
    }
    try:
        response = http.get("/api/v0/actors", params=query, timeout=TIMEOUT)
        response.raise_for_status()
        actors: list[dict[str, Any]] = response.json()["data"]["result"]["result"]
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
        raise ClusterUnavailable(f"Ray does not list its actors: {_named(error)}") from error
    return actors


def _read(http: httpx.Client, **which: str) -> Generator[bytes, None, None]:
    query: dict[str, str | int] = {"lines": -1, "timeout": AGENT_SECONDS, **which}
    try:
        with http.stream("GET", "/api/v0/logs/file", params=query, timeout=TIMEOUT) as response:
            if response.status_code == httpx.codes.INTERNAL_SERVER_ERROR:
                lines = response.read().decode(errors="replace").strip().splitlines()
                raise LogNotFound(f"Ray cannot read the log. {' '.join(lines[-1:])}")
            response.raise_for_status()
            yield from response.iter_bytes()
    except httpx.HTTPError as error:
        raise ClusterUnavailable(f"Ray does not send the log: {_named(error)}") from error


def _named(error: Exception) -> str:
    return str(error) or type(error).__name__

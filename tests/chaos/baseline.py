"""Measures the resources of an idle installation, and checks that it returns to this base line."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import httpx
import psutil
from sqlalchemy import create_engine, text

from service.cluster.ray_jobs import authorization
from tests.chaos.installation import Installation

SETTLE_SECONDS = 60.0
MEMORY_TOLERANCE = 0.15
"""How much the memory may exceed the base line, as a fraction, after a longer run."""

_IDLE_WORKER = "ray::IDLE"
"""Ray's pool of idle processes, whose number varies."""

_OF_ATTEMPTS = ("workers.attempt.driver", "ray::JobSupervisor", "ray::Worker")


@dataclass(frozen=True)
class Holdings:
    """The resources that the installation holds at one moment."""

    processes: Mapping[str, int]
    """The number of processes by name, without Ray's idle ones."""
    resources: Mapping[str, tuple[float, float]]
    """CPUs and GPUs as Ray reports them: (in use, in all)."""
    scratch: frozenset[str]
    temporary: frozenset[str]
    connections: int
    """Connections to the database, without the pools of API, dispatchers and tests."""
    memory_bytes: int
    """The memory of all processes that they do not share with others."""

    @property
    def is_idle(self) -> bool:
        """Whether no attempt is under way, and none still holds resources of Ray."""
        used = any(in_use for in_use, _ in self.resources.values())
        running = any(name in _OF_ATTEMPTS for name in self.processes)
        return not (self.scratch or used or running)

    def beyond(self, base: Holdings) -> list[str]:
        """Describe the differences from the base line: what is held in excess, or missing."""
        found = []
        if self.processes != base.processes:
            more = Counter(self.processes) - Counter(base.processes)
            fewer = Counter(base.processes) - Counter(self.processes)
            found.append(f"processes: {dict(more)} more, {dict(fewer)} fewer")
        if self.resources != base.resources:
            found.append(f"resources: {dict(self.resources)} instead of {dict(base.resources)}")
        if self.scratch - base.scratch:
            found.append(f"scratch files: {sorted(self.scratch - base.scratch)}")
        if self.temporary - base.temporary:
            found.append(f"temporary files: {sorted(self.temporary - base.temporary)}")
        if self.connections > base.connections:
            found.append(f"connections: {self.connections} instead of {base.connections}")
        if self.memory_bytes > base.memory_bytes * (1 + MEMORY_TOLERANCE):
            megabytes = [size >> 20 for size in (self.memory_bytes, base.memory_bytes)]
            found.append(f"memory: {megabytes[0]} MiB instead of {megabytes[1]} MiB")
        return found


def holdings(installation: Installation) -> Holdings:
    """The present holdings of the installation."""
    names: Counter[str] = Counter()
    memory = 0
    for process in installation.processes():
        with suppress(psutil.Error):
            name = _name(process)
            if name != _IDLE_WORKER:
                names[name] += 1
                memory += process.memory_full_info().uss
    scratch = installation.settings.scratch_dir
    return Holdings(
        names,
        _resources(installation),
        frozenset(str(path.relative_to(scratch)) for path in scratch.rglob("*")),
        frozenset(path.name for path in installation.temporary.iterdir()),
        _connections(installation),
        memory,
    )


def settle(
    installation: Installation, base: Holdings, seconds: float = SETTLE_SECONDS
) -> tuple[float, list[str]]:
    """Wait for the base line; return how long that took, and the remaining differences."""
    start = time.monotonic()
    while True:
        try:
            beyond = holdings(installation).beyond(base)
        except (httpx.HTTPError, KeyError) as error:  # Ray does not report usage yet
            beyond = [f"Ray does not report its usage: {error!r}"]
        waited = time.monotonic() - start
        if not beyond or waited > seconds:
            return round(waited, 1), beyond
        time.sleep(0.5)


def _name(process: psutil.Process) -> str:
    """The kind of a process, without the parts that vary between processes of a kind."""
    command: list[str] = process.cmdline()
    if len(command) == 1:  # a title set by Ray
        return command[0].split(" ")[0].split(".")[0]
    ours = [part for part in command if part.startswith(("service.", "workers.", "api."))]
    return ours[0] if ours else str(process.name())


def _resources(installation: Installation) -> dict[str, tuple[float, float]]:
    with httpx.Client(headers=authorization(), trust_env=False, timeout=10) as http:
        answer = http.get(f"{installation.ray.dashboard_url}/api/cluster_status")
    usage = answer.json()["data"]["clusterStatus"]["loadMetricsReport"]["usage"]
    return {name: tuple(usage[name]) for name in ("CPU", "GPU")}


def _connections(installation: Installation) -> int:
    """The number of connections of processes other than the API, the dispatchers and this one."""
    engine = create_engine(installation.settings.database)
    with engine.connect() as connection:
        query = text(
            "SELECT client_port FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        ports = set(connection.execute(query).scalars())
    engine.dispose()
    pids = [os.getpid(), *(daemon.pid for daemon in installation.daemons.values())]
    return len(ports - {port for pid in pids for port in _ports_of(pid)})


def _ports_of(pid: int) -> list[int]:
    with suppress(psutil.Error):
        return [connection.laddr.port for connection in psutil.Process(pid).net_connections()]
    return []

"""What the service's processes hold while jobs run: memory, open files, disk, objects, records."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from bench.demo_server import Server
from service.cluster.ray_jobs import TOKEN_PATH_VARIABLE, authorization

ROLES = {
    "uvicorn": "API",
    "workers.actors.inspector": "inspector",
    "service.dispatch.dispatcher": "dispatcher",
    "gcs_server": "gcs_server",
    "raylet/raylet": "raylet",
    "dashboard/dashboard.py": "dashboard",
    "ray-dashboard-": "dashboard's modules",
    "ray::DashboardAgent": "agent",
    "ray::RuntimeEnvAgent": "runtime agent",
    "monitor.py": "monitors",
    "ray.util.client.server": "client server",
    "weed": "bucket",
    "ray start": "ray start",
    "eigenpress serve": "serve",
    "multiprocessing.": "dashboard's modules",
}
"""A process is the first whose words its command line has. All others belong to running jobs."""

OF_JOBS = "jobs"

HEAD = "all of Ray's head"
PARTS_OF_HEAD = frozenset(
    {
        "gcs_server",
        "raylet",
        "dashboard",
        "dashboard's modules",
        "agent",
        "runtime agent",
        "monitors",
        "client server",
        "ray start",
    }
)

JUDGED = ("API", "inspector", "dispatcher", HEAD)
"""What has to be flat. The parts of Ray's head and the bucket's server are only shown."""

FLAT_SHARE = 0.05
"""What grows by a smaller share, from a quarter of the jobs to the last one, is flat."""


@dataclass(frozen=True)
class Sample:
    """The state of the service after `finished` jobs. Sizes are in bytes."""

    finished: int
    seconds: float  # since the first submission
    memory: dict[str, int]  # anonymous resident memory, by role
    open_files: dict[str, int]
    processes_of_jobs: int
    ray_jobs: int
    objects: int  # in Ray's object store
    scratch: int
    logs: int
    session: int
    session_files: int
    database: int
    at_rest: bool  # whether all jobs have ended

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Growth:
    """A line fitted to the memory of one role."""

    at_start: float  # bytes
    per_job: float  # bytes
    share: float  # of `at_start`, over all jobs of the fit

    @property
    def flat(self) -> bool:
        return self.share < FLAT_SHARE


class Watcher:
    """Takes samples of one running service."""

    def __init__(self, server: Server, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._session = Path((data_dir / "ray" / "session").read_text())
        self._http = httpx.Client(
            base_url=server.dashboard_url,
            headers=authorization({TOKEN_PATH_VARIABLE: str(server.token_path)}),
            trust_env=False,
            timeout=30,
        )

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def sample(self, finished: int, seconds: float, *, at_rest: bool = False) -> Sample:
        """Look at all processes of the service, at its files and at Ray's records."""
        memory: Counter[str] = Counter()
        files: Counter[str] = Counter()
        processes = 0
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error, OSError):  # it has just ended
                name = role(process.cmdline())
                memory[name] += anonymous_bytes(process.pid)
                files[name] += process.num_fds()
                processes += name == OF_JOBS
        session, session_files = tree_bytes(self._session)
        return Sample(
            finished=finished,
            seconds=seconds,
            memory=dict(memory),
            open_files=dict(files),
            processes_of_jobs=processes,
            ray_jobs=len(self._get("/api/jobs/")),
            objects=sum(
                node["raylet"]["objectStoreUsedMemory"]
                for node in self._get("/nodes?view=summary")["data"]["summary"]
            ),
            scratch=tree_bytes(self._data_dir / "scratch")[0],
            logs=tree_bytes(self._data_dir / "logs")[0],
            session=session,
            session_files=session_files,
            database=sum(file.stat().st_size for file in self._data_dir.glob("eigenpress.db*")),
            at_rest=at_rest,
        )

    def _get(self, path: str) -> Any:
        return self._http.get(path).raise_for_status().json()


def role(command_line: Sequence[str]) -> str:
    """What a process is to the service, by its command line."""
    words = " ".join(command_line)
    return next((name for mark, name in ROLES.items() if mark in words), OF_JOBS)


def anonymous_bytes(pid: int) -> int:
    """Resident memory that no file backs: heaps and stacks, without libraries and shared objects.

    Of what forked processes share, each has its part. Raises OSError if the process has ended.
    """
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1]) << 10
    return 0


def tree_bytes(folder: Path) -> tuple[int, int]:
    """The bytes of the files below a folder, and their number; 0 if there is none."""
    sizes = []
    for path in folder.rglob("*"):
        with suppress(OSError):
            if path.is_file() and not path.is_symlink():
                sizes.append(path.stat().st_size)
    return sum(sizes), len(sizes)


def growths(samples: Iterable[Sample], since: int) -> dict[str, Growth]:
    """Fit a line to the memory of every role, and of Ray's head, from the job number `since` on.

    Nothing is fitted with fewer than three samples.
    """
    fitted = {s.finished: with_head(s.memory) for s in samples if s.finished >= since}
    if len(fitted) < 3:
        return {}
    names = set.intersection(*(set(memory) for memory in fitted.values()))
    return {
        name: growth({finished: memory[name] for finished, memory in fitted.items()})
        for name in sorted(names - {OF_JOBS})
    }


def with_head(memory: Mapping[str, int]) -> dict[str, int]:
    """The memory by role, with the sum of the parts of Ray's head."""
    head = sum(size for name, size in memory.items() if name in PARTS_OF_HEAD)
    return dict(memory) | ({HEAD: head} if head else {})


def growth(memory: Mapping[int, int]) -> Growth:
    """Fit a line to bytes by number of finished jobs."""
    slope, intercept = statistics.linear_regression(list(memory), list(memory.values()))
    at_start = intercept + slope * min(memory)
    return Growth(at_start, slope, slope * (max(memory) - min(memory)) / at_start)

"""Follows jobs with many clients over a restart of the API: does each get every event once?

    python -m bench.followers --followers 500

It starts PostgreSQL and the API, makes jobs whose events it writes at a steady rate, and follows
them over sockets. Half-way it stops the API by SIGTERM and starts it again; the clients follow
again with the last id that they have seen. At the end it compares what each got with the database,
and prints the time from an event to its arrival, and the memory of the API. Its exit status is not
zero if a client lacks an event, has one twice or in another order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import quantiles

import httpx
import psutil

from service.client.following import END, ENDED, MEDIA_TYPE, frames
from service.domain.job import DEFAULT_TENANT
from service.domain.retry_policy import RetryPolicy
from service.errors import StorageUnavailable
from service.standalone.ports import LOOPBACK, choose_port
from service.store.store import Store
from tests.fixtures.jobs import small_spec
from tests.fixtures.postgres import PostgresServer

START_SECONDS = 60.0
PAUSE_SECONDS = 0.3
"""Before a client follows again."""
SETTLE_SECONDS = 2.0
MIB = 1 << 20
ONCE = RetryPolicy(max_attempts=1)


@dataclass(frozen=True)
class Load:
    followers: int
    jobs: int
    events_per_second: float
    seconds: float


@dataclass
class Follower:
    """A client of one job; times are seconds since the epoch."""

    job_id: str
    ids: list[int] = field(default_factory=list)
    arrivals: list[tuple[float, float]] = field(default_factory=list)
    """When each event happened, and when it came."""
    connections: int = 0
    done: bool = False

    async def run(self, http: httpx.AsyncClient) -> None:
        while not self.done:
            with suppress(httpx.TransportError):
                await self._follow(http)
            if not self.done:
                await asyncio.sleep(PAUSE_SECONDS)

    async def _follow(self, http: httpx.AsyncClient) -> None:
        after = str(self.ids[-1]) if self.ids else "0"
        headers = {"Accept": MEDIA_TYPE, "Last-Event-ID": after}
        path = f"/v1/jobs/{self.job_id}/events"
        async with http.stream("GET", path, headers=headers) as response:
            response.raise_for_status()
            self.connections += 1
            lines: list[str] = list(ENDED) if response.status_code == 204 else []
            self._read(lines)
            async for line in response.aiter_lines():
                lines.append(line)
                if not line:
                    self._read(lines)
                    lines.clear()

    def _read(self, lines: Sequence[str]) -> None:
        for frame in frames(lines):
            if frame.type == END:
                self.done = True
                continue
            event = json.loads(frame.data)
            self.ids.append(event["id"])
            happened = datetime.fromisoformat(event["at"]).timestamp()
            self.arrivals.append((happened, time.time()))


@dataclass(frozen=True)
class Outcome:
    followers: int
    events: int
    wrong: int
    """Clients that lack an event, have one twice or in another order."""
    reconnected: int
    stop_seconds: float
    """From SIGTERM to the end of the API's process."""
    restart_seconds: float
    """From SIGTERM to the moment when the last client had an event of the new process."""
    latencies: list[float]
    """From an event to its arrival, in seconds, those around the restart left out."""
    memory: dict[str, int]

    def __str__(self) -> str:
        cuts = quantiles(self.latencies, n=100, method="inclusive")
        memory = ", ".join(f"{when} {size / MIB:.1f}" for when, size in self.memory.items())
        return (
            f"{self.followers} followers, {self.events} events, {self.wrong} followers wrong, "
            f"{self.reconnected} reconnected\n"
            f"the API stopped in {self.stop_seconds:.2f} s; all followed again after "
            f"{self.restart_seconds:.2f} s\n"
            f"from an event to its arrival: median {1000 * cuts[49]:.0f} ms, "
            f"99 % {1000 * cuts[98]:.0f} ms\n"
            f"memory of the API in MiB: {memory}"
        )


class Api:
    """The API as a process of its own, which can be restarted at the same address."""

    def __init__(self, database_url: str, folder: Path) -> None:
        self._port = choose_port(0, "")
        self._log = folder / "api.log"
        self._env = os.environ | {
            "EIGENPRESS_REQUIRE_KEYS": "false",
            "EIGENPRESS_DATABASE_URL": database_url,
            "EIGENPRESS_DATA_DIR": str(folder / "data"),
            "EIGENPRESS_S3_ENDPOINT_URL": f"http://{LOOPBACK}:9",  # nothing asks for it
            "EIGENPRESS_S3_ACCESS_KEY_ID": "unused",
            "EIGENPRESS_S3_SECRET_ACCESS_KEY": "unused",
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def resident_bytes(self) -> int:
        assert self._process is not None
        return int(psutil.Process(self._process.pid).memory_info().rss)

    def start(self) -> None:
        command = [sys.executable, "-m", "uvicorn", "--factory", "api.app:create_app"]
        where = ["--host", LOOPBACK, "--port", str(self._port), "--log-level", "warning"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, *where], env=self._env, stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            running = self._process.poll() is None and time.monotonic() < deadline
            assert running, self._log.read_text()
            time.sleep(0.05)

    def stop(self) -> float:
        """Ask it to stop; return how many seconds that took."""
        assert self._process is not None
        begun = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(START_SECONDS)
        return time.monotonic() - begun

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", trust_env=False).is_success
        except httpx.TransportError:
            return False


@contextmanager
def serving(database_url: str, folder: Path) -> Iterator[Api]:
    api = Api(database_url, folder)
    api.start()
    try:
        yield api
    finally:
        api.kill()


class Writer:
    """Running jobs whose events are written one after the other."""

    def __init__(self, store: Store, jobs: int) -> None:
        self._store = store
        spec = small_spec()
        self.job_ids = [store.users(DEFAULT_TENANT).create(spec).id for _ in range(jobs)]
        for _ in self.job_ids:
            assert store.claims.claim(max_running=jobs) is not None

    def write(self, number: int) -> None:
        job_id = self.job_ids[number % len(self.job_ids)]
        self._store.attempts.record(job_id, 1, "bench.numbered", f"event {number}")

    def end(self) -> None:
        for job_id in self.job_ids:
            self._store.attempts.fail(job_id, 1, StorageUnavailable().failure(), ONCE)

    def ids(self, job_id: str) -> list[int]:
        return [each.id for each in self._store.records.events(job_id, limit=1_000_000)]


async def follow(api: Api, writer: Writer, load: Load) -> Outcome:
    """Follow the jobs while their events are written, over one restart."""
    followers = [
        Follower(writer.job_ids[number % len(writer.job_ids)]) for number in range(load.followers)
    ]
    memory = {"at first": api.resident_bytes}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    timeout = httpx.Timeout(30.0)
    async with httpx.AsyncClient(
        base_url=api.url, limits=limits, timeout=timeout, trust_env=False
    ) as http:
        tasks = [asyncio.create_task(each.run(http)) for each in followers]
        await _until(lambda: all(each.ids for each in followers))
        memory["with all followers"] = api.resident_bytes
        half = int(load.events_per_second * load.seconds / 2)
        await _write(writer, range(half), load.events_per_second)
        memory["before the restart"] = api.resident_bytes
        writing = asyncio.create_task(_write(writer, range(half, 2 * half), load.events_per_second))
        stopped_at = time.time()
        stop_seconds = await asyncio.to_thread(api.stop)
        await asyncio.to_thread(api.start)
        await _until(lambda: all(each.connections > 1 for each in followers))
        await _until(lambda: all(each.arrivals[-1][0] > stopped_at for each in followers))
        followed_at = time.time()
        memory["after it"] = api.resident_bytes
        await writing
        await asyncio.sleep(SETTLE_SECONDS)
        memory["at the end"] = api.resident_bytes
        await asyncio.to_thread(writer.end)
        await asyncio.gather(*tasks)
    expected = {job_id: writer.ids(job_id) for job_id in writer.job_ids}
    first = {job_id: ids[1] for job_id, ids in expected.items()}  # older than the followers
    return Outcome(
        followers=len(followers),
        events=sum(map(len, expected.values())),
        wrong=sum(each.ids != expected[each.job_id] for each in followers),
        reconnected=sum(each.connections > 1 for each in followers),
        stop_seconds=stop_seconds,
        restart_seconds=followed_at - stopped_at,
        latencies=[
            came - happened
            for each in followers
            for id_, (happened, came) in zip(each.ids, each.arrivals, strict=True)
            if id_ > first[each.job_id] and not stopped_at - 1 < happened < followed_at
        ],
        memory=memory,
    )


async def _write(writer: Writer, numbers: range, per_second: float) -> None:
    begun = time.monotonic()
    for done, number in enumerate(numbers):
        await asyncio.sleep(begun + done / per_second - time.monotonic())
        await asyncio.to_thread(writer.write, number)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(START_SECONDS):
        while not condition():
            await asyncio.sleep(0.02)


def run(database_url: str, folder: Path, load: Load) -> Outcome:
    """Follow jobs in this migrated database, with an API that writes its files into the folder."""
    with closing(Store(database_url)) as store, serving(database_url, folder) as api:
        return asyncio.run(follow(api, Writer(store, load.jobs), load))


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = _parser().parse_args(arguments)
    load = Load(chosen.followers, chosen.jobs, chosen.rate, chosen.seconds)
    with PostgresServer() as server, tempfile.TemporaryDirectory() as folder:
        with closing(Store(server.url)) as store:
            store.migrate()
        outcome = run(server.url, Path(folder), load)
    print(outcome)
    return 1 if outcome.wrong else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Many followers over a restart of the API.")
    parser.add_argument("--followers", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--rate", type=float, default=20.0, help="events per second, of all jobs")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long events are written")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Measures the API on PostgreSQL with many jobs: ``python -m bench.api_load``, or `make bench-api`.

One API process, a real PostgreSQL and a real S3 server run here, with the generator beside them.

*Reads*: requests begin at a fixed rate, whether or not earlier ones have been answered; the time of
each counts from the moment at which it should have begun. *Submits*: so many clients each send the
next job when the last one was accepted; the model has been checked before.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import psutil
import torch
from sqlalchemy import create_engine, text

from bench.measuring import machine
from service.domain.job import DEFAULT_TENANT
from service.domain.keys import new_key
from service.domain.spec.job import JobSpec
from service.domain.tenant import EVERY_PLACE, Limits
from service.standalone.ports import LOOPBACK, choose_port
from service.standalone.s3_server import LocalS3
from service.standalone.subprocesses import Child
from service.store.store import Store
from tests.fixtures.models import save_tiny_model, tiny_llama_config
from tests.fixtures.postgres import PostgresServer

TENANTS = 10
TEAMS = 20
READY_SECONDS = 60
ENDED_SHARE = 0.9
"""Of the jobs that are there; the others are queued."""


@dataclass(frozen=True)
class Running:
    """The service under load."""

    url: str
    key: str
    process: psutil.Process
    job_ids: list[str]
    body: dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Run all measurements and print them."""
    options = _parser().parse_args(arguments)
    print("On " + ", ".join(map(str, machine(torch.device("cpu")).values())) + ".")
    with tempfile.TemporaryDirectory() as folder, service(Path(folder), options.jobs) as running:
        before = running.process.memory_info().rss
        reads = asyncio.run(read(running, options.rate, options.seconds))
        print(f"\n{options.jobs} jobs; {options.rate} reads a second for {options.seconds} s:\n")
        print("| request | count | p50, ms | p99, ms | longest, ms |\n|---|--:|--:|--:|--:|")
        for name in sorted(reads):
            print(_row(name, reads[name]))
        print(_row("all", [each for times in reads.values() for each in times]))
        count, seconds = asyncio.run(submit(running, options.clients, options.seconds))
        print(f"\n{count / seconds:.0f} submits a second by {options.clients} clients.")
        after = running.process.memory_info().rss
        print(f"\nMemory of the API: {before / 2**20:.0f} MiB before, {after / 2**20:.0f} after.")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=10_000, help="that are there")
    parser.add_argument("--rate", type=int, default=100, help="of reads, each second")
    parser.add_argument("--clients", type=int, default=8, help="that submit")
    parser.add_argument("--seconds", type=int, default=30, help="of each measurement")
    return parser


def _row(name: str, seconds: list[float]) -> str:
    milliseconds = sorted(1000 * each for each in seconds)
    if len(milliseconds) < 2:
        return f"| {name} | {len(milliseconds)} | | | |"
    p99 = statistics.quantiles(milliseconds, n=100, method="inclusive")[98]
    middle = statistics.median(milliseconds)
    return f"| {name} | {len(milliseconds)} | {middle:.1f} | {p99:.1f} | {milliseconds[-1]:.0f} |"


@contextmanager
def service(folder: Path, jobs: int) -> Iterator[Running]:
    """An API on a database with so many jobs of the tenant `default`, and a few of others."""
    inputs = folder / "inputs"
    (inputs / "texts").mkdir(parents=True)
    (inputs / "texts" / "text.py").write_bytes(
        (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_bytes()
    )
    save_tiny_model(inputs / "tiny", tiny_llama_config())
    body = _body(inputs)
    port, key = choose_port(0, ""), new_key()
    with ExitStack() as started:
        database = started.enter_context(PostgresServer()).url
        bucket = started.enter_context(LocalS3(folder / "s3", bucket="eigenpress"))
        job_ids = fill(database, body, jobs)
        env = {
            "EIGENPRESS_DATA_DIR": str(folder / "data"),
            "EIGENPRESS_DATABASE_URL": database,
            "EIGENPRESS_ADMIN_KEY": key,
            "EIGENPRESS_REQUIRE_KEYS": "true",
            "EIGENPRESS_REQUESTS_PER_MINUTE": "1000000",
            "EIGENPRESS_ALLOWED_ROOTS": str(inputs),
            "EIGENPRESS_S3_ENDPOINT_URL": bucket.endpoint_url,
            "EIGENPRESS_S3_ACCESS_KEY_ID": bucket.access_key_id,
            "EIGENPRESS_S3_SECRET_ACCESS_KEY": bucket.secret_access_key,
        }
        serve = ["uvicorn", "--factory", "api.app:create_app", "--no-access-log"]
        command = (sys.executable, "-m", *serve, "--host", LOOPBACK, "--port", str(port))
        api = started.enter_context(Child(command, env, folder / "api.log"))
        url = f"http://{LOOPBACK}:{port}"
        wait_until_it_answers(url, api, folder / "api.log")
        yield Running(url, key, psutil.Process(api.pid), job_ids, body)


def _body(inputs: Path) -> dict[str, Any]:
    return {
        "model": {"source": "local", "path": str(inputs / "tiny")},
        "targets": [{"keep": 0.8}],
        "calibration": {
            "data": {"source": "local", "path": str(inputs / "texts"), "pattern": "*.py"},
            "sequences": 8,
            "sequence_length": 128,
        },
    }


def fill(database: str, body: dict[str, Any], jobs: int) -> list[str]:
    """Put jobs into the database, most of them ended; return the ids of the tenant `default`."""
    ids = []
    with closing(Store(database)) as store:
        store.migrate()
        for number in range(TENANTS):
            store.tenants.create(f"team-{number}", Limits(), EVERY_PLACE)
        for number in range(jobs):
            tenant = DEFAULT_TENANT if number % 2 else f"team-{number % TENANTS}"
            labels = {"team": f"t{number % TEAMS}"}
            spec = JobSpec.model_validate(body | {"name": f"n{number % 500}", "labels": labels})
            job = store.users(tenant).create(spec)
            if tenant == DEFAULT_TENANT:
                ids.append(job.id)
    engine = create_engine(database)
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE jobs SET state = 'succeeded', finished_at = created_at "
                "WHERE random() < :share"
            ),
            {"share": ENDED_SHARE},
        )
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    engine.dispose()
    return ids


def wait_until_it_answers(url: str, api: Child, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and api.is_running():
        try:
            if httpx.get(f"{url}/healthz", trust_env=False).is_success:
                return
        except httpx.TransportError:
            time.sleep(0.1)
    raise SystemExit(f"The API did not start:\n{log.read_text()[-2000:]}")


@asynccontextmanager
async def client(running: Running, connections: int) -> AsyncIterator[aiohttp.ClientSession]:
    """A light client: it shares the machine with what it measures."""
    async with aiohttp.ClientSession(
        base_url=running.url,
        headers={"Authorization": f"Bearer {running.key}"},
        connector=aiohttp.TCPConnector(limit=connections),
        raise_for_status=True,
    ) as http:
        yield http


async def read(running: Running, rate: int, seconds: int) -> dict[str, list[float]]:
    """Send reads at the rate; the seconds of each, by the kind of request."""
    found: dict[str, list[float]] = {}
    chosen = random.Random(0)
    async with client(running, 200) as http, asyncio.TaskGroup() as group:
        await _get(http, "/v1/jobs")  # imports and plans are not what is measured
        begin = time.perf_counter()
        for number in range(rate * seconds):
            due = begin + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            name, path = _some_read(running, chosen)
            group.create_task(_timed(http, path, due, found.setdefault(name, [])))
    return found


def _some_read(running: Running, chosen: random.Random) -> tuple[str, str]:
    job = chosen.choice(running.job_ids)
    return chosen.choice(
        [
            ("a job", f"/v1/jobs/{job}"),
            ("its events", f"/v1/jobs/{job}/events"),
            ("first page", "/v1/jobs?limit=20"),
            ("by state", "/v1/jobs?limit=20&state=queued"),
            ("by name", f"/v1/jobs?limit=20&name=n{chosen.randrange(500)}"),
            ("by label", f"/v1/jobs?limit=20&label=team=t{chosen.randrange(TEAMS)}"),
            ("by method", "/v1/jobs?limit=20&method=impact-kron&state=succeeded"),
            ("by time", "/v1/jobs?limit=20&created_before=2100-01-01T00:00:00Z"),
        ]
    )


async def _timed(http: aiohttp.ClientSession, path: str, due: float, times: list[float]) -> None:
    await _get(http, path)
    times.append(time.perf_counter() - due)


async def _get(http: aiohttp.ClientSession, path: str) -> bytes:
    async with http.get(path) as answer:
        return await answer.read()


async def submit(running: Running, clients: int, seconds: int) -> tuple[int, float]:
    """Submit jobs as fast as the clients can; how many were accepted, in how many seconds."""
    async with client(running, clients) as http:
        await _post(http, running.body)  # checks the model
        begin = time.perf_counter()

        async def one() -> int:
            accepted = 0
            while time.perf_counter() - begin < seconds:
                await _post(http, running.body)
                accepted += 1
            return accepted

        counts = await asyncio.gather(*(one() for _ in range(clients)))
        return sum(counts), time.perf_counter() - begin


async def _post(http: aiohttp.ClientSession, body: dict[str, Any]) -> bytes:
    async with http.post("/v1/jobs", json=body) as answer:
        return await answer.read()


if __name__ == "__main__":
    sys.exit(main())

"""Checks that no job is lost or doubled while a tenth of all calls fail and attempts die.

The failing calls are those to the database and the bucket. Two dispatchers and the attempts run as
threads, each with faulty connections of its own. A reader with sound connections checks that it
never sees an incomplete artifact.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest

from service import retrying
from service.dispatch import cleanup, dispatcher
from service.domain.job import DEFAULT_TENANT
from service.errors import DatabaseUnavailable
from service.settings import Settings
from service.store.store import Store
from tests.chaos.dispatching import (
    Connections,
    Reader,
    all_ended,
    dispatching,
    numbered_spec,
    problems_of,
)
from tests.chaos.faults import Faults, spoil_database, spoil_storage
from tests.chaos.inprocess import InProcessCluster
from tests.fixtures.waiting import wait_until

DEATH_RATE = 0.1
END_SECONDS = 300.0


@dataclass(frozen=True)
class Faulty:
    """The results for one seed."""

    seed: int
    jobs: int
    attempts: int
    deaths: int
    calls: int
    faults: int
    reads: int
    seconds: float
    problems: list[str]


def run_faulty(settings: Settings, seed: int, jobs: int, rate: float = 0.1) -> Faulty:
    """Run `jobs` jobs on the migrated database and the bucket of `settings`, in `short_pauses`."""
    start = time.monotonic()
    faults = Faults(seed, rate)
    sound, *faulty = (
        Connections.open(settings, patience_seconds=patience_seconds)
        for patience_seconds in (0, settings.retry_timeout_seconds, 0, 0)
    )
    for own in faulty:
        spoil_database(own.store, faults)
        spoil_storage(own.storage, faults)
    attempts, *dispatchers = faulty
    cluster = InProcessCluster(
        attempts.store, attempts.storage, settings, seed=seed, death_rate=DEATH_RATE
    )
    job_ids = [_submit(attempts.store, seed, number) for number in range(jobs)]
    with Reader(sound, job_ids) as reader:
        eager = settings.model_copy(update={"cleanup_grace_seconds": 0})
        with dispatching(cluster, eager, dispatchers):
            wait_until(partial(all_ended, sound.store, job_ids), END_SECONDS)
            cluster.join()
            wait_until(lambda: not sound.store.claims.to_clean(), END_SECONDS)
        faults.stop()
    problems = reader.problems + problems_of(sound.store, sound.storage, job_ids)
    problems += _doubled(sound.store, jobs)
    numbers = [sound.store.records.get(job_id).attempt for job_id in job_ids]
    for own in (sound, *faulty):
        own.store.close()
    return Faulty(
        seed,
        jobs,
        sum(numbers),
        cluster.deaths,
        sum(faults.calls.values()),
        sum(faults.injected.values()),
        reader.reads,
        round(time.monotonic() - start, 1),
        problems,
    )


def _submit(store: Store, seed: int, number: int) -> str:
    """Submit a job with an idempotency key; repeat the call until it is answered, as clients do."""
    spec, key = numbered_spec(number), f"{seed}-{number}"
    create = partial(store.users(DEFAULT_TENANT).create_once, spec, key)
    job, _ = retrying.retry(create, on=DatabaseUnavailable, seconds=END_SECONDS)
    return job.id


def _doubled(store: Store, jobs: int) -> list[str]:
    found = len(store.records.list_jobs(limit=10 * jobs))
    return [] if found == jobs else [f"{jobs} submissions created {found} jobs"]


@contextmanager
def short_pauses() -> Iterator[None]:
    """Shorten the pauses before a repetition, because injected faults do not need them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrying, "FIRST_PAUSE_SECONDS", 0.02)
        patch.setattr(cleanup, "AGAIN_SECONDS", 0.2)
        patch.setattr(dispatcher, "CLAIM_SECONDS", 2.0)
        yield

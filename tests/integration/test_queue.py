"""Many claimers share one queue on PostgreSQL: each job once, fairly, within limits, and fenced."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import create_engine, select

import service.store.users
from service.domain.job import DEFAULT_TENANT, EventType, Job
from service.domain.states import JobState
from service.errors import AttemptLost
from service.store.store import Store
from service.store.tables import events
from service.store.transitions import transition
from tests.fixtures.claiming import ROOT, assert_claimed_once, fill
from tests.fixtures.jobs import age, at_once, small_spec
from tests.fixtures.waiting import wait_until

WRITE_ON = """
import sys
from service.domain.states import Step
from service.store.store import Store
store = Store(sys.argv[1])
print("ready", flush=True)
for done in range(10**9):
    store.attempts.progress(sys.argv[2], 1, Step.CALIBRATE, done, 10**9, "sequences")
    store.attempts.record(sys.argv[2], 1, "note", str(done))
"""


def test_sixteen_claimers_claim_each_job_once(postgres_url: str) -> None:
    assert_claimed_once(postgres_url, jobs=1000, processes=4, threads=4)


def test_limits_hold_and_nobody_starves(postgres_url: str) -> None:
    """Eight dispatchers, three slots, two for a tenant, a thousand jobs of one tenant and one."""
    fill(postgres_url, 1000, "many")
    (single,) = fill(postgres_url, 1, "one")
    ended: list[str] = []

    def work(_: int) -> None:
        with closing(Store(postgres_url)) as store:
            while len(ended) < 60:
                if job := store.claims.claim(max_running=3, max_running_per_tenant=2):
                    store.attempts.succeed(job.id, job.attempt, {})
                    ended.append(job.id)
                else:
                    time.sleep(0.01)  # a dispatcher's rhythm, only quicker

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    history = list(claims_and_ends(postgres_url))
    claimed = [job_id for job_id, kind in history if kind == EventType.CLAIMED]
    assert claimed.index(single) < 4
    running: Counter[str] = Counter()
    for job_id, kind in history:
        tenant = "one" if job_id == single else "many"
        running[tenant] += 1 if kind == EventType.CLAIMED else -1
        assert running.total() <= 3
        assert running[tenant] <= 2


def claims_and_ends(url: str) -> Iterator[tuple[str, str]]:
    """Job and event, in the order of the database's clock: an end is later seen than written."""
    engine = create_engine(url)
    kinds = (EventType.CLAIMED, EventType.SUCCEEDED)
    query = select(events.c.job_id, events.c.type).where(events.c.type.in_(kinds))
    with engine.connect() as connection:
        for row in connection.execute(query.order_by(events.c.at)):
            yield row.job_id, row.type
    engine.dispose()


@pytest.mark.parametrize("moment", range(3))
def test_a_suspended_attempt_writes_nothing_once_it_goes_on(
    postgres_url: str, postgres_store: Store, moment: int
) -> None:
    job_id = postgres_store.users(DEFAULT_TENANT).create(small_spec()).id
    postgres_store.claims.claim(lease_seconds=0.5)
    # Suspended in the middle of a transaction it must not hold the job's row for long.
    limit = quote("-c idle_in_transaction_session_timeout=300ms")
    attempt = subprocess.Popen(
        [sys.executable, "-c", WRITE_ON, f"{postgres_url}?options={limit}", job_id],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: len(postgres_store.records.events(job_id)) > 10)
        time.sleep(0.003 * moment)
        attempt.send_signal(signal.SIGSTOP)
        wait_until(lambda: postgres_store.records.get(job_id).lapsed)
        postgres_store.attempts.fail(job_id, 1, AttemptLost().failure(), at_once(2))
        before = postgres_store.records.events(job_id), postgres_store.records.get(job_id).steps
        second = postgres_store.claims.claim()
        assert second is not None
        attempt.send_signal(signal.SIGCONT)
        _, said = attempt.communicate(timeout=60)
    finally:
        attempt.kill()
        attempt.wait()
    assert "AttemptStale" in said or "DatabaseUnavailable" in said  # its connection was ended
    written = postgres_store.records.events(job_id, after=before[0][-1].id)
    assert [(event.type, event.attempt) for event in written] == [(EventType.CLAIMED, 2)]
    assert steps_of(postgres_store.records.get(job_id)) == ()


def steps_of(job: Job) -> tuple[str, ...]:
    return tuple(step.step for step in job.steps)


def test_an_old_job_that_its_user_is_retrying_is_not_deleted(
    postgres_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    retried, other = (
        postgres_store.users(DEFAULT_TENANT).create(small_spec()).id for _ in range(2)
    )
    for job_id in (retried, other):
        postgres_store.claims.claim()
        postgres_store.attempts.fail(job_id, 1, AttemptLost().failure(), at_once(1))
        age(postgres_store, job_id, 3600)
    holds_the_row, go_on = threading.Event(), threading.Event()

    def slow_transition(*args: Any, **values: Any) -> Any:
        holds_the_row.set()
        assert go_on.wait(10)
        return transition(*args, **values)

    monkeypatch.setattr(service.store.users, "transition", slow_transition)
    with ThreadPoolExecutor(1) as pool:
        retry = pool.submit(postgres_store.users(DEFAULT_TENANT).retry, retried)
        try:
            assert holds_the_row.wait(10)
            assert postgres_store.claims.delete_old(60) == 1  # without waiting
        finally:
            go_on.set()
        assert retry.result().state is JobState.QUEUED
    assert postgres_store.claims.delete_old(60) == 0
    assert [job.id for job in postgres_store.records.list_jobs(limit=9)] == [retried]

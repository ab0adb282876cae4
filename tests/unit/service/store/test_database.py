"""The store during outages of the database, and with several processes that use it at once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import sqlalchemy.exc
from sqlalchemy import create_engine, insert, select

from service.domain.job import DEFAULT_TENANT
from service.domain.states import JobState, Step
from service.errors import AttemptStale, DatabaseUnavailable
from service.store import database, tables
from service.store.database import Database
from service.store.store import Store
from tests.fixtures.jobs import small_spec

CLAIM_ALL = """
import sys
from service.store.store import Store
store = Store(sys.argv[1])
sys.stdin.readline()
while job := store.claims.claim():
    print(job.id, flush=True)
store.close()
"""


def test_a_connection_in_use_is_closed_once_it_is_given_back(database_url: str) -> None:
    store = Database(database_url)
    with store.reading() as connection:
        used = connection.connection.dbapi_connection
        assert used is not None
        store.close()
        assert connection.execute(select(1)).scalar_one() == 1
    with pytest.raises(Exception, match="closed"):
        used.cursor().execute("SELECT 1")


def test_no_tables_is_unavailable(database_url: str) -> None:
    store = Store(database_url)
    with pytest.raises(DatabaseUnavailable, match="no such table"):
        store.check()
    store.close()


def test_a_folder_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'missing' / 'jobs.db'}")
    with pytest.raises(DatabaseUnavailable, match="unable to open database file"):
        store.records.get("job-none")


def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "jobs.db").write_bytes(b"not a database, but long enough to be read as one" * 40)
    store = Store(f"sqlite:///{tmp_path / 'jobs.db'}")
    with pytest.raises(DatabaseUnavailable, match="not a database"):
        store.migrate()


@pytest.mark.usefixtures("job_store")
def test_a_lock_held_too_long_is_unavailable(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_SECONDS", 0.0)
    impatient = Store(database_url)
    holder = sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(DatabaseUnavailable, match="locked"):
            impatient.users(DEFAULT_TENANT).create(small_spec())
        assert impatient.records.list_jobs(limit=1) == []  # readers do not wait for writers
    finally:
        holder.close()
        impatient.close()


@pytest.mark.usefixtures("job_store")
def test_a_defect_stays_a_defect(database_url: str) -> None:
    database = Database(database_url)
    orphan = {"job_id": "job-none", "content": {}}
    with pytest.raises(sqlalchemy.exc.IntegrityError), database.writing() as connection:
        connection.execute(insert(tables.reports).values(orphan))
    database.close()


def test_an_exception_undoes_the_transaction(job_store: Store, database_url: str) -> None:
    job = job_store.users(DEFAULT_TENANT).create(small_spec())
    database = Database(database_url)
    row = {"job_id": job.id, "content": {}}
    with suppress(RuntimeError), database.writing() as connection:
        connection.execute(insert(tables.reports).values(row))
        raise RuntimeError
    database.close()
    assert job_store.records.report(job.id) is None


def test_instants_need_a_timezone_and_come_back_in_utc() -> None:
    engine = create_engine("sqlite://")
    tables.metadata.create_all(engine)
    noon = datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    row = {"id": "job-x", "state": "queued", "spec": "{}", "attempt": 0}
    with engine.begin() as connection:
        connection.execute(insert(tables.jobs).values(row | {"created_at": noon}))
        read = connection.execute(select(tables.jobs.c.created_at)).scalar_one()
        assert (read, read.tzinfo) == (noon, UTC)
        naive = row | {"id": "job-y", "created_at": noon.replace(tzinfo=None)}
        with pytest.raises(sqlalchemy.exc.StatementError, match="no timezone"):
            connection.execute(insert(tables.jobs).values(naive))
    engine.dispose()


def test_processes_claim_each_job_once(job_store: Store, database_url: str) -> None:
    jobs = {job_store.users(DEFAULT_TENANT).create(small_spec()).id for _ in range(40)}
    command = [sys.executable, "-c", CLAIM_ALL, database_url]
    claimers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for claimer in claimers:
        assert claimer.stdin is not None
        claimer.stdin.write("go\n")
        claimer.stdin.flush()
    claims = [claimer.communicate(timeout=60)[0].split() for claimer in claimers]
    assert [claimer.returncode for claimer in claimers] == [0, 0, 0]
    assert sorted(job for claim in claims for job in claim) == sorted(jobs)


def test_threads_claim_each_job_once(job_store: Store) -> None:
    jobs = [job_store.users(DEFAULT_TENANT).create(small_spec()).id for _ in range(20)]
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: job_store.claims.claim(), range(24)))
    assert sorted(job.id for job in claims if job) == jobs


def test_of_an_end_and_a_cancellation_one_wins(job_store: Store) -> None:
    """Whichever comes first; never both, and never half of one."""

    def succeed(job_id: str) -> bool:
        try:
            job_store.attempts.progress(job_id, 1, Step.PUBLISH, 1, 1, "artifacts")
            job_store.attempts.succeed(job_id, 1, {"won": True})
        except AttemptStale:
            return False
        return True

    def cancel(job_id: str) -> bool:
        try:
            return job_store.users(DEFAULT_TENANT).cancel(job_id).state is JobState.CANCELLING
        except Exception:
            return False

    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            job = job_store.users(DEFAULT_TENANT).create(small_spec())
            job_store.claims.claim()
            ended, cancelled = pool.submit(succeed, job.id), pool.submit(cancel, job.id)
            assert ended.result() != cancelled.result()
            state = job_store.records.get(job.id).state
            assert state is (JobState.SUCCEEDED if ended.result() else JobState.CANCELLING)
            assert (job_store.records.report(job.id) is not None) == ended.result()

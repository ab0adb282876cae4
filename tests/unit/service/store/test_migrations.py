"""From every version the migrations lead to the tables that the code uses."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from service.domain.job import DEFAULT_TENANT
from service.domain.spec import JobSpec
from service.errors import SchemaMismatch
from service.store.database import MIGRATIONS
from service.store.store import Store
from service.store.tables import metadata


@pytest.mark.usefixtures("job_store")
def test_migrations_agree_with_the_tables(database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        indexes = {index["name"] for index in inspect(connection).get_indexes("jobs")}
    engine.dispose()
    assert indexes == {
        "ix_jobs_state_id",
        "ix_jobs_state_tenant_rank_id",
        "ix_jobs_clean_after",
        "ix_jobs_deadline",
        "ix_jobs_deleted_at_finished_at",
    }


def test_migrating_again_keeps_what_is_there(job_store: Store) -> None:
    job_store.migrate()
    job_store.check()


def test_old_heartbeats_leave_the_history(
    job_store: Store, job_spec: JobSpec, database_url: str
) -> None:
    job = job_store.users(DEFAULT_TENANT).create(job_spec)
    job_store.claims.claim()
    kept = job_store.records.events(job.id)
    job_store.attempts.record(job.id, 1, "attempt.renewed", "The lease expires later.")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(database_url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0002")
    engine.dispose()
    with pytest.raises(SchemaMismatch, match=r"is 0002, .* works with \d{4}: run `eigenpress migr"):
        job_store.check_schema()
    job_store.migrate()
    job_store.check_schema()
    assert job_store.records.events(job.id) == kept


def test_a_database_of_a_newer_version_is_refused(job_store: Store, database_url: str) -> None:
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    with pytest.raises(SchemaMismatch, match="newer version of Eigenpress"):
        job_store.migrate()
    with pytest.raises(SchemaMismatch, match=r"is 9999, .* a newer version has migrated it"):
        job_store.check_schema()


def test_a_database_without_tables_has_no_schema(database_url: str) -> None:
    store = Store(database_url)
    with pytest.raises(SchemaMismatch, match=r"is missing, .*: run `eigenpress migrate`"):
        store.check_schema()
    store.close()


def test_several_processes_may_migrate_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'jobs.db'}"
    together = threading.Barrier(6)

    def migrate(_: int) -> None:
        store = Store(url)
        together.wait()
        store.migrate()
        store.check()
        store.close()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(migrate, range(6)))


def test_migrations_are_found_inside_the_package() -> None:
    versions = files("service.store.migrations") / "versions"
    assert any(entry.name.startswith("0001_") for entry in versions.iterdir())

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
from service.domain.spec.job import JobSpec
from service.errors import SchemaMismatch
from service.store.database import MIGRATIONS
from service.store.listing import JobFilter
from service.store.store import Store
from service.store.tables import metadata
from tests.fixtures.jobs import rewrite_spec, small_spec


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
        "ix_jobs_tenant_id_state_method_created_at",
        "ix_jobs_tenant_name_id",
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


def test_older_jobs_are_found_by_name_and_method(job_store: Store, database_url: str) -> None:
    users = job_store.users(DEFAULT_TENANT)
    first, newer, last = (users.create(small_spec(name)) for name in ("a", "b", "c"))
    rewrite_spec(job_store, newer, name=7, method="m" * 100)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(database_url)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        many = text(
            "INSERT INTO jobs (id, state, spec, attempt, created_at) "
            "SELECT :id, state, spec, attempt, created_at FROM jobs WHERE id = :first"
        )
        copies = [{"id": f"copy-{number}", "first": first.id} for number in range(1000)]
        connection.execute(many, copies)
        command.downgrade(config, "0003")
        assert "name" not in {each["name"] for each in inspect(connection).get_columns("jobs")}
    engine.dispose()
    job_store.migrate()
    assert len(users.list_jobs(JobFilter(name="a"), limit=2000)) == 1001
    assert [job.name for job in users.list_jobs(limit=3)] == ["c", None, "a"]
    for found, wanted in (
        ([last], JobFilter(name="c")),
        ([last, first], JobFilter(methods=[first.spec.method])),
    ):
        assert users.list_jobs(wanted, limit=len(found)) == found


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

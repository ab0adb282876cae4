"""The connection to a real PostgreSQL server: outages, limits, migrations."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import quote

import psycopg
import pytest
import sqlalchemy.exc
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, func, insert, select, text, update

from service.domain.job import DEFAULT_TENANT
from service.errors import DatabaseUnavailable, SchemaMismatch
from service.standalone.ports import choose_port
from service.store.database import Database
from service.store.store import Store
from service.store.tables import jobs, metadata, reports
from tests.fixtures.jobs import small_spec
from tests.fixtures.postgres import PostgresServer


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    with closing(Database(postgres_url)) as database:
        yield database


def limited(url: str, **limits: str) -> Database:
    """The same database with shorter limits, as an URL may set them."""
    options = " ".join(f"-c {name}={value}" for name, value in limits.items())
    return Database(f"{url}?options={quote(options)}")


def number(connection: Connection, job_id: str) -> None:
    """Write something into the job's row, which locks it."""
    connection.execute(update(jobs).where(jobs.c.id == job_id).values(attempt=1))


def put_report(connection: Connection, job_id: str) -> None:
    connection.execute(insert(reports).values(job_id=job_id, content={}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("@127.0.0.1", "@127.0.0.2"), "refused"),
        (("eigenpress:", "nobody:"), "password authentication failed"),
        (("/postgres", "/missing"), 'database "missing" does not exist'),
    ],
)
def test_a_server_that_cannot_be_used_is_unavailable(
    postgres_server: PostgresServer, changed: tuple[str, str], said: str
) -> None:
    store = Store(postgres_server.url.replace(*changed))
    with pytest.raises(DatabaseUnavailable, match=said) as caught:
        store.check()
    assert postgres_server.password not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_nobody_listening_is_unavailable(postgres_server: PostgresServer) -> None:
    free = choose_port(0, "")
    store = Store(postgres_server.url.replace(f":{postgres_server.port}/", f":{free}/"))
    with pytest.raises(DatabaseUnavailable, match="Connection refused"):
        store.records.get("job-none")


def test_no_tables_is_unavailable(postgres_server: PostgresServer) -> None:
    missing = 'relation "jobs" does not exist'
    with (
        closing(Store(postgres_server.url)) as store,
        pytest.raises(DatabaseUnavailable, match=missing),
    ):
        store.check()


def test_a_defect_stays_a_defect(database: Database) -> None:
    with pytest.raises(sqlalchemy.exc.IntegrityError), database.writing() as connection:
        put_report(connection, "job-none")


class TestRestarts:
    @pytest.mark.parametrize("mode", ["fast", "immediate"])
    def test_between_two_calls_are_not_noticed(
        self, postgres_server: PostgresServer, postgres_store: Store, mode: str
    ) -> None:
        job = postgres_store.users(DEFAULT_TENANT).create(small_spec())
        postgres_server.restart(mode)
        assert postgres_store.records.get(job.id) == job

    def test_a_killed_server_comes_back(
        self, postgres_server: PostgresServer, postgres_store: Store
    ) -> None:
        job = postgres_store.users(DEFAULT_TENANT).create(small_spec())
        postgres_server.kill()
        with pytest.raises(DatabaseUnavailable):
            postgres_store.records.get(job.id)
        postgres_server.start()
        assert postgres_store.records.get(job.id) == job

    @pytest.mark.parametrize("statements_after", [0, 1])
    def test_within_a_transaction_undo_it(
        self,
        postgres_server: PostgresServer,
        postgres_store: Store,
        database: Database,
        statements_after: int,
    ) -> None:
        job = postgres_store.users(DEFAULT_TENANT).create(small_spec())

        def put(restarts: int) -> None:
            with database.writing() as connection:
                put_report(connection, job.id)
                for _ in range(restarts):
                    postgres_server.restart()
                    for _ in range(statements_after):
                        connection.execute(select(1))

        with pytest.raises(DatabaseUnavailable):
            put(restarts=1)
        assert postgres_store.records.report(job.id) is None
        put(restarts=0)
        assert postgres_store.records.report(job.id) == {}


class TestLimits:
    def test_a_statement_ends(self, postgres_url: str) -> None:
        with (
            closing(limited(postgres_url, statement_timeout="50ms")) as database,
            pytest.raises(DatabaseUnavailable, match="statement timeout"),
            database.reading() as connection,
        ):
            connection.execute(select(func.pg_sleep(10)))

    def test_waiting_for_a_lock_ends(self, postgres_store: Store, postgres_url: str) -> None:
        job = postgres_store.users(DEFAULT_TENANT).create(small_spec())
        with (
            closing(limited(postgres_url, lock_timeout="50ms")) as database,
            database.writing() as holder,
        ):
            number(holder, job.id)
            with (
                pytest.raises(DatabaseUnavailable, match="lock timeout"),
                database.writing() as waiter,
            ):
                number(waiter, job.id)

    def test_a_client_that_stands_still_loses_its_locks(
        self, postgres_store: Store, postgres_url: str
    ) -> None:
        """Somebody suspended in the middle of a transaction holds nobody up."""
        job = postgres_store.users(DEFAULT_TENANT).create(small_spec())
        limit = {"idle_in_transaction_session_timeout": "50ms"}
        with closing(limited(postgres_url, **limit)) as database:
            suspended = database.writing()
            number(suspended.__enter__(), job.id)
            assert postgres_store.users(DEFAULT_TENANT).cancel(job.id).state == "cancelled"
            with pytest.raises(DatabaseUnavailable):
                suspended.__exit__(None, None, None)
        assert postgres_store.records.get(job.id).attempt == 0

    def test_every_session_has_them(self, database: Database) -> None:
        with database.reading() as connection:
            for name in ("statement_timeout", "lock_timeout"):
                assert connection.scalar(text(f"SHOW {name}")) != "0"


def test_of_two_that_deadlock_one_is_told(postgres_store: Store, database: Database) -> None:
    first, second = (postgres_store.users(DEFAULT_TENANT).create(small_spec()).id for _ in range(2))
    together = threading.Barrier(2)

    def lock(ids: tuple[str, str]) -> str:
        try:
            with database.writing() as connection:
                for job_id in ids:
                    number(connection, job_id)
                    if job_id == ids[0]:
                        together.wait()
        except DatabaseUnavailable as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        told = sorted(pool.map(lock, [(first, second), (second, first)]))
    assert told[0] == ""
    assert "deadlock" in told[1]


def test_a_reader_sees_one_snapshot(postgres_store: Store, database: Database) -> None:
    with database.reading() as connection:
        before = connection.scalar(select(func.count()).select_from(jobs))
        postgres_store.users(DEFAULT_TENANT).create(small_spec())
        assert connection.scalar(select(func.count()).select_from(jobs)) == before


def test_a_reader_cannot_write(postgres_store: Store, database: Database) -> None:
    job = postgres_store.users(DEFAULT_TENANT).create(small_spec())
    with pytest.raises(DatabaseUnavailable, match="read-only"), database.reading() as connection:
        put_report(connection, job.id)


def test_several_processes_may_migrate_at_once(
    postgres_server: PostgresServer, request: pytest.FixtureRequest
) -> None:
    url = postgres_server.create_database(request.node.name)
    together = threading.Barrier(6)

    def migrate(_: int) -> None:
        with closing(Store(url)) as store:
            together.wait()
            store.migrate()
            store.check()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(migrate, range(6)))


def test_migrations_agree_with_the_tables(postgres_url: str) -> None:
    engine = create_engine(postgres_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_the_schema_is_checked(
    postgres_server: PostgresServer, postgres_url: str, request: pytest.FixtureRequest
) -> None:
    empty = postgres_server.create_database(request.node.name)
    with closing(Store(empty)) as store, pytest.raises(SchemaMismatch, match="is missing"):
        store.check_schema()
    with closing(Store(postgres_url)) as store:
        store.check_schema()
        with store._database.writing() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(SchemaMismatch, match=r"is 9999, .* a newer version has migrated it"):
            store.check_schema()


def test_sessions_end_with_their_store(postgres_server: PostgresServer, postgres_url: str) -> None:
    store = Store(postgres_url)
    store.check()
    store.close()
    with psycopg.connect(postgres_server.url.replace("+psycopg", "")) as connection:
        count = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        name = postgres_url.rpartition("/")[2]
        assert connection.execute(count, [name]).fetchone() == (0,)

"""The connection to the jobs database: transactions, errors, migrations.

SQLite and PostgreSQL give the same guarantees. A read transaction sees one snapshot. In a write
transaction, each statement sees everything committed before it began, and waits for rows that other
transactions have locked (on SQLite, for the whole database). No call waits for ever: the PostgreSQL
server limits the time of each statement, each wait for a lock and each idle transaction.

Not guaranteed: that a transaction which raised DatabaseUnavailable was rolled back. The connection
may have broken after the commit, so callers may repeat only idempotent writes.
"""

from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy.exc
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Table,
    create_engine,
    event,
    func,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.pool import ConnectionPoolEntry
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random

from service.errors import DatabaseUnavailable, SchemaMismatch

BUSY_TIMEOUT_SECONDS = 30.0
"""How long an SQLite writer waits for another one; every write here takes milliseconds."""

MIGRATION_WAIT_SECONDS = 600
"""How long a process waits while another one migrates the same PostgreSQL database."""

_HALF = re.compile("[\ud800-\udfff]")
"""A surrogate, which stands for a byte of a file name that is not UTF-8."""

POOL: dict[str, Any] = {
    "pool_size": 5,
    "max_overflow": 10,
    "pool_timeout": 10,
    "pool_pre_ping": True,
}
"""The connection pool of one process, which tests each connection before its use."""

POSTGRES_SESSION = {
    "statement_timeout": "30s",
    # This exceeds the limit for idle transactions: a suspended client that holds a row lock loses
    # it before the waiting clients give up.
    "lock_timeout": "20s",
    "idle_in_transaction_session_timeout": "10s",
    "timezone": "UTC",
}
"""The server-side limits of every session."""

POSTGRES_CONNECTION: dict[str, Any] = {
    "application_name": "eigenpress",
    "connect_timeout": 5,
    "options": " ".join(f"-c {name}={value}" for name, value in POSTGRES_SESSION.items()),
    # These detect the loss of the server's machine or network within half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""The parameters of libpq; the URL overrides them (``?connect_timeout=20``)."""

MIGRATIONS = Path(__file__).parent / "migrations"

_DEFECTS = (
    sqlalchemy.exc.DataError,
    sqlalchemy.exc.IntegrityError,
    sqlalchemy.exc.ProgrammingError,
)

_NOT_DEFECTS = frozenset({"42P01", "42501"})
"""PostgreSQL's undefined_table and insufficient_privilege, which mean an unprepared database."""


class Database:
    """Opens transactions on a database that several processes share. Threads may share it."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._engine = _engine(self._url)
        self._reading_engine = self._engine
        if self._is_postgresql:
            self._reading_engine = self._engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        self._writing_engine = self._engine.execution_options(eigenpress_writes=True)

    @property
    def _is_postgresql(self) -> bool:
        return self._url.get_backend_name() == "postgresql"

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A read-only transaction that sees one snapshot.

        Raises DatabaseUnavailable when the database cannot be opened or read.
        """
        with _mapped_errors(), self._reading_engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A write transaction, committed at the end and rolled back on any exception.

        Raises DatabaseUnavailable when the database cannot be opened or written.
        """
        with _mapped_errors(), self._writing_engine.begin() as connection:
            yield connection

    def migrate(self) -> None:
        """Bring the schema up to date; several processes may do so at once.

        Raises DatabaseUnavailable when the database cannot be opened or written, and SchemaMismatch
        when a newer version than this one has migrated it.
        """
        if self._url.get_backend_name() == "sqlite" and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        with self.writing() as connection:
            if self._is_postgresql:
                _lock_for_migration(connection)
            config = _migrations()
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise SchemaMismatch(
                    f"The jobs database belongs to a newer version of Eigenpress ({error}): "
                    "install that version here."
                ) from error

    def check_schema(self) -> None:
        """Raise SchemaMismatch unless the schema is exactly this version's.

        It reads only the revision that the migrations recorded. Raises DatabaseUnavailable.
        """
        scripts = ScriptDirectory.from_config(_migrations())
        with self.reading() as connection:
            found = MigrationContext.configure(connection).get_current_heads()
        expected = tuple(scripts.get_heads())
        if found == expected:
            return
        known = {script.revision for script in scripts.walk_revisions()}
        if known.issuperset(found):
            remedy = "run `eigenpress migrate` of this version"
        else:
            remedy = "a newer version has migrated it; install that version here"
        raise SchemaMismatch(
            f"The schema of the jobs database is {', '.join(found) or 'missing'}, and this version "
            f"of Eigenpress works with {', '.join(expected)}: {remedy}."
        )

    def close(self) -> None:
        """Close all connections, that of a thread which still reads or writes once it is done."""
        event.listen(self._engine.pool, "checkin", _close_returned)
        self._engine.dispose()


def clock(connection: Connection) -> datetime:
    """The current time by the clock that all clients of the database share.

    That is PostgreSQL's clock, or the clock of the machine on which all clients of SQLite run.
    """
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return now.astimezone(UTC)


def clock_value(connection: Connection) -> datetime | ColumnElement[datetime]:
    """The current time as a value to write; PostgreSQL fills it in, which saves a round trip."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    return func.clock_timestamp()


def insert_if_absent(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless its key is taken; return whether it was inserted."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table).values(values).on_conflict_do_nothing()
    return connection.execute(statement.returning(*table.primary_key)).first() is not None


def try_lock(connection: Connection, name: str) -> bool:
    """Try to take the lock `name` until the transaction ends; return whether that succeeded.

    A write transaction on SQLite excludes all others, so it always succeeds there.
    """
    if connection.dialect.name == "sqlite":
        return True
    lock = func.pg_try_advisory_xact_lock(_lock_key(name))
    held: bool = connection.execute(select(lock)).scalar_one()
    return held


def _lock_key(name: str) -> int:
    """The 64-bit key of PostgreSQL's advisory lock `name`."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        chosen = {k: v for k, v in POSTGRES_CONNECTION.items() if k not in url.query}
        return create_engine(
            url,
            json_serializer=_as_json,
            isolation_level="READ COMMITTED",
            connect_args=chosen,
            **POOL,
        )
    engine = create_engine(
        url, json_serializer=_as_json, connect_args={"timeout": BUSY_TIMEOUT_SECONDS}
    )
    event.listen(engine, "connect", _open_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _close_returned(_connection: object, record: ConnectionPoolEntry) -> None:
    record.close()


def _as_json(value: object) -> str:
    """The JSON to store, which every reader takes: no NaN, and no half of a character."""
    stored = json.dumps(value, allow_nan=False)
    if "\\ud" not in stored:
        return stored
    whole = _HALF.sub(
        lambda half: f"\\\\u{ord(half[0]):04x}", json.dumps(value, ensure_ascii=False)
    )
    return json.dumps(json.loads(whole))


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _lock_for_migration(connection: Connection) -> None:
    """Take the migration lock until the transaction ends, and raise its time limits."""
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text(f"SET LOCAL lock_timeout = '{MIGRATION_WAIT_SECONDS}s'"))
    connection.execute(select(func.pg_advisory_xact_lock(_lock_key("migrate"))))


def _open_sqlite(connection: Any, _record: object) -> None:
    # sqlite3 would begin deferred transactions itself; `_begin_sqlite` begins ours.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON").close()
    _use_write_ahead_log(connection)


def _is_busy(error: BaseException) -> bool:
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY


# SQLite does not wait for another connection that switches a new database at the same time.
@retry(
    retry=retry_if_exception(_is_busy),
    stop=stop_after_delay(BUSY_TIMEOUT_SECONDS),
    wait=wait_random(0, 0.1),
    reraise=True,
)
def _use_write_ahead_log(connection: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL").close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads and then writes fails if another one wrote in between.
    writes = connection.get_execution_options().get("eigenpress_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _mapped_errors() -> Iterator[None]:
    try:
        yield
    except (sqlalchemy.exc.DBAPIError, sqlalchemy.exc.TimeoutError) as error:
        reason = getattr(error, "orig", None) or error
        if isinstance(error, _DEFECTS) and getattr(reason, "sqlstate", None) not in _NOT_DEFECTS:
            raise
        detail = " ".join(str(reason).split())
        raise DatabaseUnavailable(f"The jobs database cannot be used: {detail}") from error

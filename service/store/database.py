"""The connection to the jobs database: how it is opened, transactions, errors, migrations.

SQLite and PostgreSQL give the same promises. A transaction that reads sees one snapshot. One that
writes sees, in each statement, what others have committed by then, and waits for rows that others
have locked (on SQLite: for the whole database). No call waits for ever: on PostgreSQL the server
ends statements, waits for locks and transactions that their client has left open.

Not promised: that a transaction which ended in DatabaseUnavailable was undone. The connection may
have broken after the commit, so whoever repeats a write must be able to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
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

from service.errors import DatabaseUnavailable, SchemaMismatch

BUSY_TIMEOUT_SECONDS = 30.0
"""How long a writer of SQLite waits for another one; every write here takes milliseconds."""

MIGRATION_WAIT_SECONDS = 600
"""How long a process waits for another one that migrates the same PostgreSQL database."""

POOL: dict[str, Any] = {
    "pool_size": 5,
    "max_overflow": 10,
    "pool_timeout": 10,
    "pool_pre_ping": True,
}
"""Connections of one process: this many are kept open, and the oldest is tried before its use."""

POSTGRES_SESSION = {
    "statement_timeout": "30s",
    # Longer than a transaction may stand idle: a client that is suspended while it holds a row
    # loses it before those who wait give up.
    "lock_timeout": "20s",
    "idle_in_transaction_session_timeout": "10s",
    "timezone": "UTC",
}
"""Server-side limits, of every session."""

POSTGRES_CONNECTION: dict[str, Any] = {
    "application_name": "eigenpress",
    "connect_timeout": 5,
    "options": " ".join(f"-c {name}={value}" for name, value in POSTGRES_SESSION.items()),
    # A server whose machine or network is gone is noticed within half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""Of libpq; a URL may say otherwise (``?connect_timeout=20``)."""

MIGRATIONS = Path(__file__).parent / "migrations"

_DEFECTS = (
    sqlalchemy.exc.DataError,
    sqlalchemy.exc.IntegrityError,
    sqlalchemy.exc.ProgrammingError,
)

_NOT_DEFECTS = frozenset({"42P01", "42501"})
"""PostgreSQL's undefined_table and insufficient_privilege: the database is not set up."""


class Database:
    """Transactions on one database, which several processes share. Threads may share this."""

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
        """A transaction that sees one snapshot and writes nothing.

        Raises DatabaseUnavailable when the database cannot be opened or read.
        """
        with _mapped_errors(), self._reading_engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes; committed at the end, undone by any exception.

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

        It reads what the migrations have noted, and nothing else. Raises DatabaseUnavailable.
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
        self._engine.dispose()


def clock(connection: Connection) -> datetime:
    """What time it is, by the one clock that all who share the database agree on.

    SQLite has none but that of the machine, on which all of them run.
    """
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    return now.astimezone(UTC)


def clock_value(connection: Connection) -> datetime | ColumnElement[datetime]:
    """The same time, to be written: PostgreSQL fills it in, which saves a question."""
    if connection.dialect.name == "sqlite":
        return datetime.now(UTC)
    return func.clock_timestamp()


def insert_if_absent(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless its key is taken; whether it was inserted."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table).values(values).on_conflict_do_nothing()
    return connection.execute(statement.returning(*table.primary_key)).first() is not None


def hold(connection: Connection, name: str) -> bool:
    """Be the only one, until the transaction ends, to hold a name; False if another one does.

    A transaction that writes to SQLite holds every name.
    """
    if connection.dialect.name == "sqlite":
        return True
    lock = func.pg_try_advisory_xact_lock(_number_of(name))
    held: bool = connection.execute(select(lock)).scalar_one()
    return held


def _number_of(name: str) -> int:
    """What PostgreSQL knows a lock by."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)


def _engine(url: URL) -> Engine:
    # Not a number is not JSON: PostgreSQL and HTTP clients refuse it, so it must not get in.
    serializer = partial(json.dumps, allow_nan=False)
    if url.get_backend_name() == "postgresql":
        chosen = {k: v for k, v in POSTGRES_CONNECTION.items() if k not in url.query}
        return create_engine(
            url,
            json_serializer=serializer,
            isolation_level="READ COMMITTED",
            connect_args=chosen,
            **POOL,
        )
    engine = create_engine(
        url, json_serializer=serializer, connect_args={"timeout": BUSY_TIMEOUT_SECONDS}
    )
    event.listen(engine, "connect", _open_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _migrations() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config


def _lock_for_migration(connection: Connection) -> None:
    """Until the transaction ends, be the only one who migrates; the limits are lifted for it."""
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    connection.execute(text(f"SET LOCAL lock_timeout = '{MIGRATION_WAIT_SECONDS}s'"))
    connection.execute(select(func.pg_advisory_xact_lock(_number_of("migrate"))))


def _open_sqlite(connection: Any, _record: object) -> None:
    # sqlite3 would begin transactions by itself, late and deferred: `_begin_sqlite` does it.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads and then writes fails at once if another wrote between.
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
        said = " ".join(str(reason).split())
        raise DatabaseUnavailable(f"The jobs database cannot be used: {said}") from error

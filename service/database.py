"""The connection to the jobs database: how SQLite is opened, transactions, errors, migrations."""

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
from sqlalchemy import Connection, Engine, Table, create_engine, event, func, make_url, select
from sqlalchemy.dialects import postgresql, sqlite

from service.errors import DatabaseUnavailable

BUSY_TIMEOUT_SECONDS = 30.0
"""How long a writer waits for another one; every write here takes milliseconds."""

MIGRATIONS = Path(__file__).parent / "migrations"

_DEFECTS = (
    sqlalchemy.exc.DataError,
    sqlalchemy.exc.IntegrityError,
    sqlalchemy.exc.ProgrammingError,
)


class Database:
    """Transactions on one database, which several processes share. Threads may share this."""

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._engine = _engine(url)
        self._writing_engine = self._engine.execution_options(eigenpress_writes=True)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one snapshot and writes nothing.

        Raises DatabaseUnavailable when the database cannot be opened or read.
        """
        with _mapped_errors(), self._engine.begin() as connection:
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

        Raises DatabaseUnavailable when the database cannot be opened or written.
        """
        if self._url.get_backend_name() == "sqlite" and self._url.database:
            Path(self._url.database).parent.mkdir(parents=True, exist_ok=True)
        with self.writing() as connection:
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            command.upgrade(config, "head")

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


def insert_if_absent(connection: Connection, table: Table, values: Mapping[str, Any]) -> bool:
    """Insert a row unless its key is taken; whether it was inserted."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(table).values(values).on_conflict_do_nothing()
    return connection.execute(statement).rowcount == 1


def hold(connection: Connection, name: str) -> bool:
    """Be the only one, until the transaction ends, to hold a name; False if another one does.

    A transaction that writes to SQLite holds every name.
    """
    if connection.dialect.name == "sqlite":
        return True
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
    held: bool = connection.execute(select(func.pg_try_advisory_xact_lock(number))).scalar_one()
    return held


def _engine(url: str) -> Engine:
    # Not a number is not JSON: PostgreSQL and HTTP clients refuse it, so it must not get in.
    serializer = partial(json.dumps, allow_nan=False)
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, json_serializer=serializer, pool_pre_ping=True)
    engine = create_engine(
        url, json_serializer=serializer, connect_args={"timeout": BUSY_TIMEOUT_SECONDS}
    )
    event.listen(engine, "connect", _open_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


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
    except _DEFECTS:
        raise
    except (sqlalchemy.exc.DBAPIError, sqlalchemy.exc.TimeoutError) as error:
        reason = getattr(error, "orig", None) or error
        raise DatabaseUnavailable(f"The jobs database cannot be used: {reason}") from error

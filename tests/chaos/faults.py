"""Injects seeded faults into calls of the database and the bucket, at the libraries' interfaces.

A call fails in one of the ways in which servers and networks fail: it never arrives, or it is
carried out and its answer is lost. In the database a fault affects a transaction, at a statement or
at the commit. In the bucket it affects one try of a request (which boto repeats) or all of them.
"""

from __future__ import annotations

import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from botocore.exceptions import ConnectionClosedError
from sqlalchemy import Connection, event

from service.storage.s3 import ObjectStorage
from service.store.store import Store

BEFORE, AFTER = "before", "after"
FIRST, SECOND = "first statement", "second statement"
TRY_BEFORE, TRY_AFTER = "first try before", "first try after"

_FAULT = "eigenpress_fault"


@dataclass
class Faults:
    """Makes a fraction `rate` of the calls fail, and counts calls and faults."""

    seed: int
    rate: float
    calls: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self._enabled = True

    def stop(self) -> None:
        """Inject no more faults."""
        self._enabled = False

    def draw(self, subject: str, kinds: tuple[str, ...]) -> str | None:
        """Draw how this call fails; None if it does not."""
        with self._lock:
            self.calls[subject] += 1
            if not self._enabled or self._random.random() >= self.rate:
                return None
            kind = self._random.choice(kinds)
            self.injected[f"{subject} {kind}"] += 1
            return kind


def spoil_database(store: Store, faults: Faults) -> None:
    """Make transactions of this store fail, at one of their first statements or at the commit."""
    engine = store._database._engine
    is_sqlite = engine.dialect.name == "sqlite"
    broken: type[Exception] = sqlite3.OperationalError if is_sqlite else psycopg.OperationalError
    commit: Callable[[Any], None] = engine.dialect.do_commit

    def begin(connection: Connection) -> None:
        connection.info[_FAULT] = faults.draw("transaction", (FIRST, SECOND, BEFORE, AFTER))

    def before_statement(connection: Connection, *_: object) -> None:
        if connection.info.get(_FAULT) == SECOND:
            connection.info[_FAULT] = FIRST
        elif connection.info.get(_FAULT) == FIRST:
            connection.info[_FAULT] = None
            if is_sqlite:
                raise broken("disk I/O error (injected)")
            raw: Any = connection.connection.dbapi_connection
            raw.close()  # the statement now fails, as after a lost connection

    def commit_with_faults(connection: Any) -> None:
        kind, connection.info[_FAULT] = connection.info.get(_FAULT), None
        if kind in (FIRST, SECOND, BEFORE):
            connection.rollback()
            raise broken("the connection was lost before COMMIT (injected)")
        commit(connection)
        if kind == AFTER:
            raise broken("the connection was lost after COMMIT (injected)")

    event.listen(engine, "begin", begin)
    event.listen(engine, "before_cursor_execute", before_statement)
    engine.dialect.do_commit = commit_with_faults  # type: ignore[method-assign, assignment]


def spoil_storage(storage: ObjectStorage, faults: Faults) -> None:
    """Make calls through this storage fail, boto's own tries or the call as a whole."""
    _spoil_client(storage._client, faults)


def _spoil_client(client: Any, faults: Faults) -> None:
    current = threading.local()
    send = client._endpoint.http_session.send

    def lost(words: str) -> ConnectionClosedError:
        return ConnectionClosedError(endpoint_url=f"{client.meta.endpoint_url} ({words})")

    def before_call(**_: object) -> None:
        current.kind = faults.draw("S3 call", (BEFORE, AFTER, TRY_BEFORE, TRY_AFTER))
        if current.kind == BEFORE:
            raise lost("injected before the call")

    def before_send(request: Any, **_: object) -> None:
        kind = getattr(current, "kind", None)
        if kind in (TRY_BEFORE, TRY_AFTER):
            current.kind = None  # boto's next try arrives
            if kind == TRY_AFTER:
                send(request).raw.close()
            raise lost(f"injected: {kind}")

    def after_call(parsed: dict[str, Any], **_: object) -> None:
        if getattr(current, "kind", None) == AFTER:
            current.kind = None
            if "Body" in parsed:
                parsed["Body"].close()
            raise lost("injected after the call")

    client.meta.events.register("before-call.s3", before_call)
    client.meta.events.register("before-send.s3", before_send)
    client.meta.events.register("after-call.s3", after_call)

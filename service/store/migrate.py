"""Migrates the database; run it once, before any other process of a new version starts."""

from __future__ import annotations

from contextlib import closing

from service.store.store import Store


def migrate(database_url: str) -> None:
    """Bring the database to this version. Several processes may do so at once.

    Raises DatabaseUnavailable when the database cannot be opened or written, and SchemaMismatch
    when it belongs to a newer version.
    """
    with closing(Store(database_url)) as store:
        store.migrate()

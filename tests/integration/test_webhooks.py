"""Messages are delivered from PostgreSQL as they are from SQLite."""

from __future__ import annotations

import pytest

from service.store.store import Store

pytest.register_assert_rewrite("tests.unit.service.webhooks.test_deliverer")

from tests.unit.service.webhooks.test_deliverer import *  # noqa: E402, F403


@pytest.fixture
def job_store(postgres_store: Store) -> Store:
    """In place of the SQLite file of the unit tests."""
    return postgres_store

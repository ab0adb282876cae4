"""The store on PostgreSQL keeps the contract that the unit tests state for SQLite."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.register_assert_rewrite("tests.unit.service.test_store")

from tests.unit.service.test_store import *  # noqa: E402, F403


@pytest.fixture
def database_url(new_postgres_url: Callable[[], str]) -> str:
    """In place of the SQLite file of the unit tests."""
    return new_postgres_url()

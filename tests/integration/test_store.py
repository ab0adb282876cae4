"""The store passes its unit tests on PostgreSQL, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
from sqlalchemy import Engine, create_engine, delete

from service.domain.job import DEFAULT_TENANT
from service.store.store import Store
from service.store.tables import metadata
from service.store.tenants import ensure_tenant

pytest.register_assert_rewrite("tests.unit.service.store.test_credentials")
pytest.register_assert_rewrite("tests.unit.service.store.test_datasets")
pytest.register_assert_rewrite("tests.unit.service.store.test_keys")
pytest.register_assert_rewrite("tests.unit.service.store.test_listing")
pytest.register_assert_rewrite("tests.unit.service.store.test_lost_answers")
pytest.register_assert_rewrite("tests.unit.service.store.test_store")
pytest.register_assert_rewrite("tests.unit.service.store.test_tenants")
pytest.register_assert_rewrite("tests.unit.service.store.test_webhooks")

from tests.unit.service.store.test_credentials import *  # noqa: E402, F403
from tests.unit.service.store.test_datasets import *  # noqa: E402, F403
from tests.unit.service.store.test_keys import *  # noqa: E402, F403
from tests.unit.service.store.test_listing import *  # noqa: E402, F403
from tests.unit.service.store.test_lost_answers import *  # noqa: E402, F403
from tests.unit.service.store.test_store import *  # noqa: E402, F403
from tests.unit.service.store.test_tenants import *  # noqa: E402, F403
from tests.unit.service.store.test_webhooks import *  # noqa: E402, F403


@pytest.fixture(scope="module")
def engine(new_postgres_url: Callable[[], str]) -> Iterator[Engine]:
    engine = create_engine(new_postgres_url())
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def database_url(engine: Engine) -> str:
    """In place of the SQLite file of the unit tests."""
    return engine.url.render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def shared_store(database_url: str) -> Iterator[Store]:
    """One for all tests: to make a database for each takes longer than most of them."""
    with closing(Store(database_url)) as store:
        yield store


@pytest.fixture
def job_store(engine: Engine, shared_store: Store) -> Store:
    with engine.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(delete(table))
        ensure_tenant(connection, DEFAULT_TENANT)  # as a migration does
    return shared_store

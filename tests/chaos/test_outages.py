"""A short run of the scenario in which PostgreSQL restarts during many jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.standalone.s3_server import LocalS3
from service.store.store import Store
from tests.chaos.installation import QUICK
from tests.chaos.outages import run_outages
from tests.fixtures.postgres import PostgresServer
from tests.fixtures.storage import s3_settings_for


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A separate server, because other tests need the session's to keep running."""
    with PostgresServer() as server:
        yield server


def test_every_job_ends_once_with_its_result(
    own_server: PostgresServer, local_s3: LocalS3, tmp_path: Path
) -> None:
    store = Store(own_server.url)
    store.migrate()
    store.close()
    changes = QUICK | {"database_url": own_server.url, "max_running_jobs": 4}
    settings = s3_settings_for(local_s3, tmp_path, **changes)
    done = run_outages(
        own_server,
        settings,
        seed=3,
        jobs=40,
        pauses=(1, 4),
        least_restarts=2,
        step_seconds=0.05,
        end_seconds=300,
    )
    assert done.problems == []
    assert done.restarts >= 2

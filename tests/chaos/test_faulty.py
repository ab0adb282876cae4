"""A short run of the scenario with seeded faults in calls to database and bucket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from service.standalone.s3_server import LocalS3
from service.store.migrate import migrate
from tests.chaos.faulty import run_faulty, short_pauses
from tests.chaos.installation import QUICK
from tests.fixtures.storage import s3_settings_for

JOBS = 6


@pytest.mark.parametrize(("database", "seed"), [("sqlite", 1), ("postgres", 2)])
def test_nothing_is_lost_or_doubled(
    database: str,
    seed: int,
    local_s3: LocalS3,
    tmp_path: Path,
    new_postgres_url: Callable[[], str],
) -> None:
    url = new_postgres_url() if database == "postgres" else None
    settings = s3_settings_for(
        local_s3, tmp_path, **QUICK | {"database_url": url, "max_running_jobs": 4}
    )
    migrate(settings.database)
    with short_pauses():
        done = run_faulty(settings, seed, JOBS)
    assert done.problems == []
    assert done.faults > 0.05 * done.calls
    assert done.reads > 0

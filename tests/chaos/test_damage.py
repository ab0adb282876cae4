"""A short run of the scenario with damaged artifacts."""

from __future__ import annotations

from pathlib import Path

from service.settings import Settings
from tests.chaos.damage import damage_artifacts
from tests.chaos.installation import serving_api


def test_a_download_notices_every_damage(s3_settings: Settings, tmp_path: Path) -> None:
    with serving_api(s3_settings) as api:
        done = damage_artifacts(s3_settings, api.url, tmp_path, seed=1, count=25)
    assert done.problems == []
    assert done.noticed == 25

"""The documents name what the code has."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.settings import Settings

ROOT = Path(__file__).parents[2]
SETTINGS = [f"EIGENPRESS_{name.upper()}" for name in Settings.model_fields]


@pytest.mark.parametrize("setting", SETTINGS)
def test_operations_explains_every_setting(setting: str) -> None:
    assert f"`{setting}`" in (ROOT / "docs" / "operations.md").read_text()

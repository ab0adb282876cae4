"""The page about scale shows what the cost model predicts now."""

from __future__ import annotations

from pathlib import Path

from bench.scale import report

PAGE = Path(__file__).parents[3] / "docs" / "scale.md"


def test_the_page_has_the_tables_that_the_command_prints() -> None:
    page = PAGE.read_text()
    for table in report().split("\n\n"):
        assert table in page

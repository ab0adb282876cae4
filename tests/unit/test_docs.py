"""The documents name every setting, have valid links, and keep lines short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.settings import Settings

ROOT = Path(__file__).parents[2]
SETTINGS = [f"EIGENPRESS_{name.upper()}" for name in Settings.model_fields]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
MAX_LINE = 129

LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@pytest.mark.parametrize("setting", SETTINGS)
def test_operations_explains_every_setting(setting: str) -> None:
    assert f"`{setting}`" in (ROOT / "docs" / "operations.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_are_short(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert [line for line in lines if len(line) > MAX_LINE and "https://" not in line] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for name, anchor in LINK.findall(page.read_text()):
        linked = page.parent / name if name else page
        assert linked.exists(), name
        if anchor:
            headings = HEADING.findall(linked.read_text())
            assert anchor in {_anchor(heading) for heading in headings}, f"{name}#{anchor}"


def _anchor(heading: str) -> str:
    """A heading's anchor as GitHub makes it: lower case, no punctuation, hyphens for blanks."""
    return re.sub(r"[^\w\- ]", "", heading.casefold()).replace(" ", "-")

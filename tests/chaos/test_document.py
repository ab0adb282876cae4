"""The document's tables are written between its markers."""

from __future__ import annotations

import json
from pathlib import Path

from tests.chaos.document import BEGIN, DOCUMENT, END, write_document
from tests.chaos.scenarios import Outcome

OUTCOME: Outcome = {
    "title": "Kills.",
    "seeds": "4",
    "figures": {"kills": 62, "attempts at most": 3},
    "rows": [
        {
            "victim": "driver",
            "step": "solve",
            "attempts": 2,
            "job_seconds": 40.1,
            "settle_seconds": 3.0,
        }
    ],
    "problems": [],
    "seconds": 125,
    "machine": "2 cores",
    "date": "2026-01-01",
}


def test_tables_replace_the_text_between_the_markers(tmp_path: Path) -> None:
    document = tmp_path / "reliability.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    (tmp_path / "kills.json").write_text(json.dumps(OUTCOME))
    for _ in range(2):
        write_document(tmp_path, ["claimers", "kills"], document)
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert (
        "- `kills`, seeds 4: 62 kills, 3 attempts at most. Problems: none. Time: 2 min 5 s." in text
    )
    assert "- `claimers`: not yet run in full." in text
    assert text.count("| driver | solve | 2 | 40.1 s | 3.0 s |") == 1


def test_the_document_has_its_markers() -> None:
    text = DOCUMENT.read_text()
    assert text.count(BEGIN) == text.count(END) == 1

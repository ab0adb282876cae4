"""The page of estimates says which hold, of first jobs and of corrected ones."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.estimates import Row, page
from service.domain.states import Step

ROW = Row(
    model="SmolLM2-135M",
    workers=1,
    tokens=4096,
    measured_jobs=0,
    estimated={step.value: 10.0 for step in Step},
    modelled={step.value: 10.0 for step in Step},
    taken={step.value: 14.0 for step in Step},
    estimated_memory=900,
    memory=1000,
    memory_by_step={},
)
COMPUTER = {
    "device": "CPU",
    "cores": "2",
    "memory": "8 GiB",
    "python": "3.11",
    "torch": "2.13",
    "load": "0.1",
}


@pytest.mark.parametrize(
    ("changes", "time", "memory"),
    [
        ({}, True, True),
        ({"taken": {step.value: 16.0 for step in Step}}, False, True),
        ({"taken": {step.value: 6.0 for step in Step}}, False, True),
        ({"memory": 1100}, True, False),
        ({"memory": 770}, True, False),
    ],
)
def test_an_estimate_holds_if_it_is_near(
    changes: dict[str, object], time: bool, memory: bool
) -> None:
    row = replace(ROW, **changes)  # type: ignore[arg-type]
    assert (row.time_holds, row.memory_holds) == (time, memory)


def test_the_page_tells_first_jobs_from_corrected_ones() -> None:
    corrected = replace(ROW, workers=2, measured_jobs=1, memory=2000)
    text = page([ROW, corrected], COMPUTER)
    assert "- first jobs: time for 1 of 1, memory for 1;" in text
    assert "- corrected jobs: time for 1 of 1, memory for 0." in text
    rows = [line for line in text.splitlines() if line.startswith("| SmolLM2")]
    assert rows[0].startswith("| SmolLM2-135M | 1 | none: a first job | 90 s | 126 s | 0.71 |")
    assert rows[1].startswith("| SmolLM2-135M | 2 | 1 | 90 s | 126 s | 0.71 |")
    assert len(rows) == 4

"""Sizes and times as people read them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from service.quantities import duration, size_text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (94_900_000, "94.9 MB"), (2.5e12, "2.5 TB"), (3e15, "3e+03 TB")],
)
def test_bytes_have_three_digits(size: int, text: str) -> None:
    assert size_text(int(size)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3, "0 s"),
        (59.9, "59 s"),
        (185, "3 min 5 s"),
        (7800, "2 h 10 min"),
        (86_400, "24 h 0 min"),
        (4 * 86_400, "4 days"),
    ],
)
def test_a_duration_reads_as_one_would_say_it(seconds: float, text: str) -> None:
    assert duration(timedelta(seconds=seconds)) == text

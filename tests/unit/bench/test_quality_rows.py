from __future__ import annotations

import math
from pathlib import Path

from bench.quality_rows import HELD_OUT, Contender, Row, RowFile, contenders
from workers.compression.candidates import Storage


def row(keep: float, perplexity: float = 12.5) -> Row:
    return Row("svd, uniform, factors", keep, keep - 0.001, 0, {HELD_OUT: perplexity})


def test_rows_outlive_the_run_that_measured_them(tmp_path: Path) -> None:
    rows = RowFile(tmp_path, "settings")
    rows.add(row(0.8))
    rows.add(row(0.6, math.inf))

    again = RowFile(tmp_path, "settings")

    assert again.get("svd, uniform, factors", 0.8) == row(0.8)
    assert again.get("svd, uniform, factors", 0.6) == row(0.6, math.inf)
    assert again.get("svd, global, factors", 0.8) is None


def test_other_settings_have_rows_of_their_own(tmp_path: Path) -> None:
    RowFile(tmp_path, "settings").add(row(0.8))

    assert RowFile(tmp_path, "others").get("svd, uniform, factors", 0.8) is None


def test_peers_come_in_factors_and_ours_interpolative() -> None:
    assert list(contenders(("svd", "afm", "impact"))) == [
        Contender("svd", "uniform", Storage.FACTORS),
        Contender("svd", "global", Storage.FACTORS),
        Contender("afm", "uniform", Storage.FACTORS),
        Contender("afm", "global", Storage.FACTORS),
        Contender("afm", "global", Storage.INTERPOLATIVE),
        Contender("impact", "uniform", Storage.INTERPOLATIVE),
        Contender("impact", "global", Storage.INTERPOLATIVE),
        Contender("impact", "global", Storage.FACTORS),
    ]

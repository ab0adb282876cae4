"""The benchmark on a GPU runs in its scaled-down form, with torch and transformers alone."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.gpu_7b import GIB, Result, headline, targets
from bench.gpu_compress import Room
from bench.gpu_measuring import Ceilings, Step
from bench.gpu_model import SHAPES
from workers.compression.errors import BoundariesTooLarge

RUN_WITHOUT = """
import sys
for name in "ray boto3 fastapi sqlalchemy pydantic psutil accelerate service".split():
    sys.modules[name] = None
from bench.gpu_7b import main
sys.exit(main())
"""


def test_it_runs_where_nothing_of_the_service_is_installed(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    options = ["--shape", "tiny", "--device", "cpu", "--json", str(file)]
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN_WITHOUT, *options],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(file.read_text())
    assert result["tokens"] == 6 * 32
    assert list(result["steps"]) == [
        "embed", "forward", "loss", "backward", "solve impact", "solve impact-kron",
        "truncate and interpolate",
    ]  # fmt: skip
    assert list(result["baseline"]) == [
        "embed", "forward and moments", "Cholesky", "SVD and factors"
    ]  # fmt: skip
    for step in (*result["steps"].values(), *result["baseline"].values()):
        assert step["measured_seconds"] > 0
        assert step["host_peak_bytes"] > 0
    assert "times as fast, target 5" in run.stdout
    assert "SVD-LLM: extrapolated from 1 of 2 blocks" in run.stdout


def result() -> Result:
    """100 s of calibration at half the ceiling, 20 s by either method, a baseline of 900 s."""
    return Result(
        shape="llama-7b",
        device="a GPU",
        dtype="bfloat16",
        torch="2",
        tokens=10,
        batch_size=8,
        keep=0.8,
        blocks=32,
        measured_blocks=8,
        measured_baseline_blocks=1,
        keep_every=2,
        device_bytes_missing=3 * GIB,
        ceilings=Ceilings(products=100.0, products_float64=10.0, copies=5.0),
        steps={
            "embed": Step(1, 2.0),
            "forward": Step(4, 10.0, operations=500.0),
            "loss": Step(1, 8.0, operations=200.0),
            "backward": Step(4, 12.5, operations=700.0, device_peak_bytes=20 * GIB),
            "solve impact": Step(4, 5.0),
            "solve impact-kron": Step(4, 5.0),
        },
        baseline={"SVD and factors": Step(32, 30.0)},
    )


def test_targets_hold_for_the_whole_model() -> None:
    assert targets(result(), SHAPES["llama-7b"]) == {
        "seconds": "140.0 seconds, target 180: met",
        "times as fast": "8.0 times as fast, target 5: met",
        "of the ceiling in calibration": "50% of the ceiling in calibration, target 45%: met",
        "GiB": "23.0 GiB, target 24: met",
    }


def test_missed_targets_are_called_missed() -> None:
    slow = replace(
        result(),
        steps=result().steps | {"forward": Step(4, 100.0, operations=500.0)},
        device_bytes_missing=5 * GIB,
    )
    verdicts = targets(slow, SHAPES["llama-7b"])
    assert len(verdicts) == 4
    assert all(verdict.endswith(": missed") for verdict in verdicts.values())


def test_extrapolation_is_said() -> None:
    assert "Eigenpress: extrapolated from 8 of 32 blocks; their times are multiplied by 4" in (
        headline(result())
    )
    assert "SVD-LLM: extrapolated from 1 of 32" in headline(result())
    whole = replace(result(), measured_blocks=32, measured_baseline_blocks=32)
    assert "extrapolated" not in headline(whole)


def test_the_room_of_a_few_blocks_is_in_proportion_to_that_of_all() -> None:
    shape, boundary = SHAPES["llama-7b"], 2 * GIB
    whole = Room.of(shape, 32, boundary, 12 * GIB, 24 * GIB)
    assert whole == Room(12 * GIB, 24 * GIB, keep_every=2)
    part = Room.of(shape, 8, boundary, 12 * GIB, 24 * GIB)
    assert part == Room(4 * GIB, 8 * GIB, keep_every=2, device_bytes_missing=8 * GIB)


def test_hidden_states_without_room_are_refused() -> None:
    with pytest.raises(BoundariesTooLarge):
        Room.of(SHAPES["llama-7b"], 32, 2 * GIB, GIB, GIB)

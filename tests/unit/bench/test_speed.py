"""The speed benchmark runs to its end on a tiny model, and compares equal results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import speed, speed_compare, speed_plain, speed_steps
from bench.material import batches, groups_of
from bench.speed_compare import Comparison, SpectraDiffer
from tests.fixtures.models import tiny_llama_config, tiny_model

CPU = torch.device("cpu")


def tokens(sequences: int = 4, length: int = 64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(258, (sequences, length), generator=generator)
    return batches(ids.tolist(), 2, CPU)


def test_every_step_and_both_comparisons_are_measured(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = tmp_path / "speed.json"
    monkeypatch.chdir(tmp_path)
    options = f"--model {tiny_llama} --tokens 512 --batch-size 1 --repetitions 2 --json {numbers}"
    monkeypatch.setattr(sys, "argv", ["speed", *options.split()])
    monkeypatch.setattr(speed, "LENGTH", 64)

    assert speed.main() == 0

    result = json.loads(numbers.read_text())
    assert result["tokens"] == 512
    assert list(result["steps"]) == [
        "load", "calibrate", "solve", "allocate", "truncate", "save", "load the result",
        "calibrate for bits", "round",
    ]  # fmt: skip
    for comparison in result["comparisons"].values():
        assert len(comparison["ours"]) == len(comparison["plain"]) == 2
        assert comparison["speedup"] > 0


def test_a_few_blocks_of_random_weights_stand_for_a_larger_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numbers = tmp_path / "speed.json"
    options = f"--shape 7b --blocks 2 --tokens 256 --repetitions 1 --json {numbers}"
    monkeypatch.setattr(sys, "argv", ["speed", *options.split()])
    small = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    for key, value in (small | {"num_key_value_heads": 4}).items():
        monkeypatch.setitem(speed_steps.LLAMA_2_7B, key, value)

    assert speed.main() == 0

    assert json.loads(numbers.read_text())["scale"] == 16
    assert "times 16 for all blocks" in capsys.readouterr().out.replace("\n", " ")


HOLDING = """
import torch
from bench.measuring import Meter
with Meter(torch.device("cpu")) as meter:
    block = torch.ones(512 << 20, dtype=torch.uint8)
assert meter.cost.memory_peak >= meter.cost.memory_before + block.nbytes // 2, meter.cost
assert meter.cost.seconds > 0
"""


def test_a_meter_sees_what_a_step_holds_at_its_peak() -> None:
    # In a process of its own: this one may give back meanwhile what earlier tests held.
    subprocess.run([sys.executable, "-c", HOLDING], check=True)


def test_the_plain_script_learns_what_the_product_learns() -> None:
    model, data = tiny_model(tiny_llama_config()), tokens()
    groups = groups_of(model)
    observed = speed_compare.observe_inputs(model, groups, data)
    for group in groups:
        for layer in group.layers:
            sums = speed_plain.PlainStatistics.zeros(layer, torch.float64, CPU)
            for batch in data:
                speed_plain.calibrate(model, {layer.name: sums}, batch)
            moments = observed[group.name].inputs
            assert moments is not None
            second = sums.products / sums.tokens
            torch.testing.assert_close(second, moments.second_moment(), rtol=1e-4, atol=1e-6)
            squares = observed[group.name].gradient_squares[layer.name]
            predicted = sum(batch[:, 1:].numel() for batch in data) / len(data)  # ours: summed loss
            torch.testing.assert_close(
                sums.gradient_squares * predicted**2, squares, rtol=1e-4, atol=1e-6
            )


def test_ways_that_find_different_spectra_are_not_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong_root(covariance: torch.Tensor) -> torch.Tensor:
        return 2 * covariance

    monkeypatch.setattr(speed_plain, "root", wrong_root)
    with pytest.raises(SpectraDiffer, match=r"model\.layers\.0"):
        speed_compare.compare_solve(tiny_model(tiny_llama_config()), tokens(), 1)


def test_times_of_a_few_blocks_are_said_to_be_extrapolated() -> None:
    comparison = Comparison(ours=[1.0, 2.0, 3.0], plain=[9.0, 10.0, 30.0])

    assert comparison.speedup == 5
    assert "5.0 times as fast; target 4 met" in speed.comparison_line("solve", comparison, 1)
    assert "times 16 for all blocks: 32 s and 160 s" in speed.comparison_line(
        "solve", comparison, 16
    )

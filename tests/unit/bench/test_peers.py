"""What a peer answers is checked, and the page of `bench.bits` says which library it was."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.bits import Row, page
from bench.peers import PeerRun, on_grid, peer_runs
from tests.fixtures.models import byte_tokenizer, tiny_llama_config, tiny_model
from workers.compression.candidates import Width
from workers.compression.shapes import LinearLayer

LAYER = LinearLayer("down", 8, 128, False)
CODES = torch.arange(-4, 4).repeat_interleave(128).view(8, 128)  # every code of 3 bits
SCALES = torch.linspace(0.01, 0.3, 16).view(8, 2)
ROWS = [
    Row(f"row {number}", 0.3, predicted, {"held-out": (measured, 0.01)}, {"held-out": 15.0})
    for number, (predicted, measured) in enumerate([(0.1, 0.05), (0.4, 0.3), (0.2, 0.4)])
]
GIVEN = argparse.Namespace(sequences=96, length=256, held_out=24, problems=16)
COMPUTER = {"device": "a CPU", "cores": "2", "torch": "2.13.0"}
SETTINGS = {
    "version": "1.2.3",
    "actorder": "static",
    "observer": "minmax",
    "block_size": "128",
    "dampening_frac": "0.01",
}


def answer(**changed: Tensor) -> dict[str, Tensor]:
    weight = CODES * SCALES.repeat_interleave(64, 1)
    parts = {"weight": weight, "scales": SCALES} | changed
    return {f"down.{name}": tensor for name, tensor in parts.items()}


def test_codes_and_scales_are_found_again() -> None:
    found = on_grid(answer(), [LAYER], Width(3))["down"]

    assert found.codes.equal(CODES.to(torch.int8))
    assert found.scales.equal(SCALES)


def test_weights_off_the_grid_are_refused() -> None:
    moved = answer()["down.weight"].clone()
    moved[3, 70] *= 1.01

    with pytest.raises(RuntimeError, match="down is not on a grid of 3 bits"):
        on_grid(answer(weight=moved), [LAYER], Width(3))


def test_a_grid_of_more_bits_is_refused() -> None:
    with pytest.raises(RuntimeError, match="down is not on a grid of 2 bits"):
        on_grid(answer(), [LAYER], Width(2))


def test_other_groups_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"down has scales \(8, 1\), not \(8, 2\)"):
        on_grid(answer(scales=SCALES[:, :1]), [LAYER], Width(3))


def test_a_layer_that_was_left_out_is_named() -> None:
    with pytest.raises(RuntimeError, match="has not rounded up"):
        on_grid(answer(), [LAYER, LinearLayer("up", 8, 128, False)], Width(3))


def test_what_a_failed_peer_says_is_shown(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such modifier\nexit 3\n")
    python.chmod(0o700)
    model, tokenizer = tiny_model(tiny_llama_config()), byte_tokenizer(adds_bos=False)

    with pytest.raises(RuntimeError, match="ended with status 3: no such modifier"):
        peer_runs(python, model, tokenizer, [LAYER], [[1, 2, 3]])


def test_the_page_names_the_version() -> None:
    run = PeerRun(Width(4), {}, SETTINGS)

    text = page(ROWS, {"held-out": 14.7}, {"llm-compressor GPTQ, 4 bit": run}, GIVEN, COMPUTER)

    assert "version 1.2.3" in text
    assert "`actorder` static" in text


def test_the_page_says_that_the_peer_is_left_out() -> None:
    text = page(ROWS, {"held-out": 14.7}, {}, GIVEN, COMPUTER)

    assert "was not installed for this run" in text


def test_the_page_says_how_predictions_rank_the_rows() -> None:
    text = page(ROWS, {"held-out": 14.7}, {}, GIVEN, COMPUTER)

    assert "0.500 on held-out" in text  # ranks 0, 2, 1 and 0, 1, 2: 1 − 6 · 2 / (3 · 8)

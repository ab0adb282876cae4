"""Rounds a model by a library of others, llm-compressor, in an environment of its own.

`make bench-bits` makes that environment, `.venv-peers`; `bench.peer_gptq` is what runs in it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.compression.candidates import Width
from workers.compression.rounding.grid import GROUP_SIZES, RoundedWeight, nearest
from workers.compression.shapes import LinearLayer

PYTHON = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
PROGRAM = Path(__file__).with_name("peer_gptq.py")

WIDTHS = (Width(4), Width(3))
OBSERVERS = {"": None, ", mse scales": "memoryless_mse"}
"""How the library finds scales, by the end of a row's name; None is its default."""


@dataclass(frozen=True)
class PeerRun:
    """A model's layers as the library has rounded them."""

    width: Width
    layers: Mapping[str, RoundedWeight]
    settings: Mapping[str, str]  # the library's version, and what it used


def peer_runs(
    python: Path,
    model: Any,
    tokenizer: Any,
    layers: Collection[LinearLayer],
    sequences: Sequence[Sequence[int]],
) -> dict[str, PeerRun]:
    """The model rounded by GPTQ at all widths, calibrated on sequences of one length, by name.

    `python` is the interpreter of an environment with llm-compressor. Raises RuntimeError if the
    library fails, or if its weights do not lie on the grid that was asked for.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        save_file({"input_ids": torch.tensor(sequences)}, folder / "sequences.safetensors")
        return {
            f"llm-compressor GPTQ{ending}, {width.bits} bit": _run(
                python, folder, layers, width, observer
            )
            for width in WIDTHS
            for ending, observer in OBSERVERS.items()
        }


def _run(
    python: Path,
    folder: Path,
    layers: Collection[LinearLayer],
    width: Width,
    observer: str | None,
) -> PeerRun:
    out = folder / "rounded.safetensors"
    command: list[str | Path] = [python, "-I", PROGRAM]
    command += [folder, folder / "sequences.safetensors", out]
    command += ["--bits", str(width.bits), "--group-size", str(GROUP_SIZES[0])]
    command += ["--observer", observer] if observer else []
    ended = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    if ended.returncode:
        raise RuntimeError(
            f"{PROGRAM.name} ended with status {ended.returncode}: {ended.stdout[-4000:]}"
        )
    with safe_open(out, "pt") as file:
        settings = file.metadata()
    return PeerRun(width, on_grid(load_file(out), layers, width), settings)


def on_grid(
    tensors: Mapping[str, Tensor], layers: Collection[LinearLayer], width: Width
) -> dict[str, RoundedWeight]:
    """The codes and scales of the library's weights.

    `tensors` has `L.weight` (out, in) and `L.scales` (out, groups) of each layer L. Raises
    RuntimeError if a layer is missing, has other groups, or is not on a grid of this width.
    """
    found = {}
    for layer in layers:
        weight, scales = (tensors.get(f"{layer.name}.{part}") for part in ("weight", "scales"))
        if weight is None or scales is None:
            raise RuntimeError(f"llm-compressor has not rounded {layer.name}")
        groups = layer.out_features, layer.in_features // GROUP_SIZES[0]
        if scales.shape != groups:
            raise RuntimeError(f"{layer.name} has scales {tuple(scales.shape)}, not {groups}")
        # A copy, since the tensors may be views of a file that the next run replaces.
        found[layer.name] = nearest(weight, scales.clone(), width)
        if not torch.allclose(found[layer.name].dequantized(), weight, rtol=1e-5, atol=0):
            raise RuntimeError(f"{layer.name} is not on a grid of {width.bits} bits")
    return found

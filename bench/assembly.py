"""Measures the time and the peak memory of writing an artifact of 2 GB and of expanding it.

    python -m bench.assembly [FOLDER]

The model has random weights in the shapes of TinyLlama-1.1B, in bfloat16. The files are written
below FOLDER, or where the system keeps temporary files, and removed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from workers.artifact.checkpoint_writer import check_writable, write_checkpoint, write_shards
from workers.artifact.expand import expand
from workers.compression.interpolation import Interpolation

TINY_LLAMA = LlamaConfig(
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_key_value_heads=4,
    dtype="bfloat16",
)
LIMIT = 400 << 20
"""The most bytes that may be held."""


@dataclass(frozen=True)
class Assembly:
    """What it cost to write an artifact and to expand it."""

    write_seconds: float
    expand_seconds: float
    peak_bytes: int  # the most memory of both, beyond what the process holds after imports


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == ["--measured"]:
        _assemble(Path(arguments[1]))
        return 0
    with tempfile.TemporaryDirectory(dir=next(iter(arguments), None)) as scratch:
        cost = measure(Path(scratch), TINY_LLAMA)
    print(f"write {cost.write_seconds:.1f} s, expand {cost.expand_seconds:.1f} s")
    print(f"peak {cost.peak_bytes / 2**20:.0f} MiB of at most {LIMIT >> 20}")
    return int(cost.peak_bytes > LIMIT)


def measure(folder: Path, config: LlamaConfig) -> Assembly:
    """The cost of assembly in a process of its own, for random weights in these shapes."""
    save_random_model(folder / "source", config)
    command = [sys.executable, "-m", "bench.assembly", "--measured", str(folder)]
    write_seconds, expand_seconds, peak_bytes = subprocess.check_output(command).split()
    return Assembly(float(write_seconds), float(expand_seconds), int(peak_bytes))


def save_random_model(folder: Path, config: LlamaConfig) -> None:
    """A checkpoint with random weights, written tensor by tensor."""

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in _empty(config).items():
            yield name, torch.rand(tensor.shape).to(torch.bfloat16)

    folder.mkdir()
    write_shards(tensors(), folder)
    config.save_pretrained(folder)


def _assemble(folder: Path) -> None:
    """Write `folder`/artifact from `folder`/source and expand it; print what `Assembly` holds."""
    source, artifact = folder / "source", folder / "artifact"
    layers = {
        name.removesuffix(".weight"): tensor
        for name, tensor in _empty(LlamaConfig.from_pretrained(source)).items()
        if name.endswith("q_proj.weight")
    }
    check_writable(source)  # imports what is imported late
    before, start = _memory("VmRSS"), time.perf_counter()
    ranks = {name: len(layer) // 2 for name, layer in layers.items()}
    compressed = partial(map, lambda name: _halved(layers[name]))
    write_checkpoint(source, artifact, ranks, compressed, torch.bfloat16)
    written = time.perf_counter()
    expand(artifact, folder / "dense")
    print(written - start, time.perf_counter() - written, _memory("VmHWM") - before)


def _halved(layer: Tensor) -> Interpolation:
    """A random low-rank layer in these shapes."""
    outputs, inputs = layer.shape
    rank = outputs // 2
    order = torch.arange(outputs, dtype=torch.int32)
    return Interpolation(torch.rand(rank, inputs), torch.rand(outputs - rank, rank), order, None)


def _empty(config: LlamaConfig) -> dict[str, Tensor]:
    """The model's tensors, which take no memory."""
    with torch.device("meta"):
        model: dict[str, Tensor] = LlamaForCausalLM(config).state_dict()
        return model


def _memory(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.split(f"{field}:")[1].split()[0]) << 10


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Measures how fast compression is, step by step, and compares it with a plain script.

    make bench

It measures the time and the peak memory of each step of one compression by the default method, in
one process and without Ray. Then it solves and calibrates by `impact`, alternating with a plain
research script on the same data, and takes the medians of several repetitions; both must find the
same spectra. With `--shape 7b` it uses a few blocks of random weights in the shapes of Llama-2-7B
instead, which is meant for a GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from bench import material
from bench.measuring import Cost, machine
from bench.speed_compare import Comparison, compare_calibration, compare_solve
from bench.speed_steps import KEEP, METHOD_NAME, run_steps, save_random_model
from workers.model.tokenizer import load_tokenizer
from workers.text.sequences import calibration_sequences, split_documents

LENGTH = 256
BLOCKS_7B = 32
TARGETS = {"solve": 4.0, "calibration": 2.0}
"""The target speedup of each over the plain script."""


@dataclass(frozen=True)
class Subject:
    """The measured model and text; `scale` is the depth of the full model over its own."""

    name: str
    folder: Path
    sequences: list[list[int]]
    scale: float = 1.0


def main() -> int:
    arguments = _parser().parse_args()
    console = Console()
    transformers_logging.disable_progress_bar()
    device = material.device()
    with tempfile.TemporaryDirectory() as scratch:
        subject = _subject(arguments, Path(scratch))
        result = measure(console, subject, arguments, Path(scratch))
    result |= {"machine": machine(device)}
    console.print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", "utf-8")
    return 0


def measure(
    console: Console, subject: Subject, arguments: argparse.Namespace, scratch: Path
) -> dict[str, Any]:
    """Run and print everything. Raises SpectraDiffer."""
    batches = material.batches(subject.sequences, arguments.batch_size, material.device())
    tokens = sum(batch.numel() for batch in batches)
    console.print(f"{subject.name}: {tokens:,} tokens in batches of {arguments.batch_size}")
    steps = run_steps(subject.folder, batches, scratch)
    console.print(steps_table(steps.costs, steps.layers))
    comparisons = {}
    for name, compare in (("solve", compare_solve), ("calibration", compare_calibration)):
        comparisons[name] = compare(steps.model, batches, arguments.repetitions)
        console.print(comparison_line(name, comparisons[name], subject.scale))
    return {
        "model": subject.name,
        "tokens": tokens,
        "batch_size": arguments.batch_size,
        "keep": KEEP,
        "scale": subject.scale,
        "steps": {name: asdict(cost) for name, cost in steps.costs.items()},
        "comparisons": {
            name: asdict(comparison) | {"speedup": comparison.speedup}
            for name, comparison in comparisons.items()
        },
    }


def steps_table(costs: dict[str, Cost], layers: int) -> Table:
    table = Table(title=f"{METHOD_NAME}, to {KEEP:.0%} of {layers} linear layers")
    table.add_column("step")
    for heading in ("seconds", "MB at its start", "MB at its peak"):
        table.add_column(heading, justify="right")
    for name, cost in costs.items():
        memory = (f"{size / 1e6:,.0f}" for size in (cost.memory_before, cost.memory_peak))
        table.add_row(name, f"{cost.seconds:.2f}", *memory)
    return table


def comparison_line(name: str, comparison: Comparison, scale: float) -> str:
    """One comparison as a sentence; if the scale is above 1, it extrapolates to the full model."""
    ours, plain = median(comparison.ours), median(comparison.plain)
    met = "met" if comparison.speedup >= TARGETS[name] else "missed"
    line = (
        f"{name}: ours {ours:.1f} s, plain script {plain:.1f} s: {comparison.speedup:.1f} times as "
        f"fast; target {TARGETS[name]:g} {met}"
    )
    if scale == 1:
        return line
    return f"{line}; times {scale:g} for all blocks: {ours * scale:.0f} s and {plain * scale:.0f} s"


def _subject(arguments: argparse.Namespace, scratch: Path) -> Subject:
    count = -(-arguments.tokens // LENGTH)
    if arguments.shape == "7b":
        folder = save_random_model(scratch / "model", arguments.blocks, torch.bfloat16)
        sequences = torch.randint(32_000, (count, LENGTH)).tolist()
        name = f"{arguments.blocks} blocks of random weights in Llama-2-7B's shapes"
        return Subject(name, folder, sequences, BLOCKS_7B / arguments.blocks)
    folder = material.model_folder(arguments.model, material.STATE)
    ours, _ = split_documents(
        material.library_documents(), material.HELD_OUT_FRACTION, material.SEED
    )
    sequences = calibration_sequences(
        ours, load_tokenizer(folder), length=LENGTH, count=count, seed=material.SEED
    )
    return Subject(
        arguments.model.name if arguments.model else material.MODEL_NAME, folder, sequences
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time and memory of a compression.")
    parser.add_argument("--model", type=Path, help="a model's folder or .gguf file")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens to calibrate on")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences of 256 tokens")
    parser.add_argument("--repetitions", type=int, default=3, help="repetitions of comparisons")
    parser.add_argument("--shape", choices=["7b"], help="use random weights of these shapes")
    parser.add_argument("--blocks", type=int, default=2, help="the number of blocks for --shape")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())

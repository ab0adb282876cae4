"""Times a compression on one GPU, step by step, beside the steps of SVD-LLM's code.

    python -m bench.gpu_7b --json OUT
    python -m bench.gpu_7b --shape llama-70b --blocks 8 --baseline-blocks 1
    python -m bench.gpu_7b --shape tiny --device cpu

It needs torch, transformers and rich. The model has the shape of Llama-2-7B (or 70B), random
weights in bfloat16 and random tokens, so the numbers say how fast it is and nothing of quality. It
never exists as a whole: each block is made on the device while it is needed, so reading a
checkpoint is not measured. If fewer blocks are measured than the shape has, costs per block are
extrapolated in proportion, and the output says so.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.gpu_compress import CALIBRATION, DEFAULT_METHOD, SOLVED, Room, compress
from bench.gpu_measuring import Ceilings, Step, Stopwatch, measure_ceilings
from bench.gpu_model import SHAPES, Shape, random_model, random_tokens
from bench.gpu_plain import compress_plainly

KEEP = 0.8
GIB = 2**30
TARGET_SECONDS = 180
TARGET_SPEEDUP = 5
TARGET_SHARE = 0.45


@dataclass(frozen=True)
class Result:
    """Everything that was measured."""

    shape: str
    device: str
    dtype: str
    torch: str
    tokens: int
    batch_size: int
    keep: float
    blocks: int  # of the shape
    measured_blocks: int
    measured_baseline_blocks: int
    keep_every: int  # blocks per hidden state that is kept
    device_bytes_missing: int  # see `Room`
    ceilings: Ceilings
    steps: dict[str, Step]
    baseline: dict[str, Step]

    @property
    def seconds(self) -> float:
        """Of all steps, with both methods."""
        return seconds(self.steps.values())

    @property
    def speedup(self) -> float:
        """The baseline's seconds over those of the default method."""
        others = [f"solve {method}" for method in SOLVED if method != DEFAULT_METHOD]
        ours = seconds(step for name, step in self.steps.items() if name not in others)
        return seconds(self.baseline.values()) / ours

    @property
    def calibration_share(self) -> float:
        """The share of the ceiling of products at which calibration computes what it needs."""
        steps = [self.steps[name] for name in CALIBRATION]
        needed = sum(step.operations * step.factor for step in steps)
        return needed / seconds(steps) / self.ceilings.products

    @property
    def peak_bytes(self) -> int:
        """The peak of the device's memory in the whole model."""
        peak = max(step.device_peak_bytes for step in self.steps.values())
        return peak + self.device_bytes_missing


def main() -> int:
    arguments = _parser().parse_args()
    result = measure(arguments)
    console = Console()
    console.print(headline(result))
    console.print(steps_table(f"Eigenpress, {' and '.join(SOLVED)}", result.steps, result.ceilings))
    console.print(steps_table("The steps of SVD-LLM", result.baseline, result.ceilings))
    verdicts = targets(result, SHAPES[result.shape])
    for line in verdicts.values():
        console.print(line)
    if arguments.json:
        summary = {
            "seconds": result.seconds,
            "speedup": result.speedup,
            "calibration_share": result.calibration_share,
            "peak_bytes": result.peak_bytes,
            "targets": verdicts,
        }
        text = json.dumps(asdict(result) | summary, indent=2)
        arguments.json.write_text(text + "\n", "utf-8")
    return 0


def measure(arguments: argparse.Namespace) -> Result:
    """Measure the ceilings, then our steps, then the baseline's."""
    shape, device = SHAPES[arguments.shape], torch.device(arguments.device)
    dtype: torch.dtype = getattr(torch, arguments.dtype)
    blocks = min(arguments.blocks or shape.blocks, shape.blocks)
    plain_blocks = min(arguments.baseline_blocks, blocks)
    batches = random_tokens(shape, shape.sequences, shape.length, arguments.batch_size)
    tokens = shape.sequences * shape.length
    room = Room.of(
        shape,
        blocks,
        tokens * shape.hidden * dtype.itemsize,
        int((shape.device_gib if arguments.device_gib is None else arguments.device_gib) * GIB),
        int((shape.host_gib if arguments.host_gib is None else arguments.host_gib) * GIB),
    )
    ceilings = measure_ceilings(device, dtype)
    _warm_up(device, dtype)
    model = random_model(shape, blocks, dtype, device)
    ours, plain = Stopwatch(device), Stopwatch(device)
    with tempfile.TemporaryDirectory() as folder:
        factor = shape.blocks / blocks
        compress(model, shape, batches, room, KEEP, ours, factor, Path(folder))
    factor = shape.blocks / plain_blocks
    compress_plainly(model, _single(batches), plain_blocks, KEEP, plain, factor)
    return Result(
        shape=arguments.shape,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        dtype=arguments.dtype,
        torch=str(torch.__version__),
        tokens=tokens,
        batch_size=arguments.batch_size,
        keep=KEEP,
        blocks=shape.blocks,
        measured_blocks=blocks,
        measured_baseline_blocks=plain_blocks,
        keep_every=room.keep_every,
        device_bytes_missing=room.device_bytes_missing,
        ceilings=ceilings,
        steps=ours.steps,
        baseline=plain.steps,
    )


def _warm_up(device: torch.device, dtype: torch.dtype) -> None:
    """Run every step on a tiny model, so that none of those measured loads a library."""
    shape = SHAPES["tiny"]
    batches = random_tokens(shape, 2, shape.length, 2)
    model, watch = random_model(shape, 1, dtype, device), Stopwatch(device)
    room = Room(device_bytes=GIB, host_bytes=GIB, keep_every=1)
    compress(model, shape, batches, room, KEEP, watch, 1, Path(tempfile.gettempdir()))
    compress_plainly(model, _single(batches), 1, KEEP, watch, 1)


def _single(batches: Iterable[Tensor]) -> list[Tensor]:
    return [tokens for batch in batches for tokens in torch.split(batch, 1)]


def headline(result: Result) -> str:
    """What was measured, on what, and what is extrapolated."""
    ceilings = result.ceilings
    lines = [
        f"{result.shape}, {result.tokens:,} random tokens, {result.dtype}, on {result.device}; "
        f"torch {result.torch}",
        f"ceilings: products {ceilings.products / 1e12:,.1f} Tflop/s, in float64 "
        f"{ceilings.products_float64 / 1e12:,.1f}; copies {ceilings.copies / 1e9:,.1f} GB/s",
    ]
    for name, measured in (
        ("Eigenpress", result.measured_blocks),
        ("SVD-LLM", result.measured_baseline_blocks),
    ):
        if measured < result.blocks:
            factor = result.blocks / measured
            lines.append(
                f"{name}: extrapolated from {measured} of {result.blocks} blocks; their times are "
                f"multiplied by {factor:g}"
            )
    return "\n".join(lines)


def steps_table(title: str, steps: dict[str, Step], ceilings: Ceilings) -> Table:
    table = Table(title=title)
    table.add_column("step")
    for heading in ("seconds", "of products", "of copies", "device GiB", "host GiB so far"):
        table.add_column(heading, justify="right")
    for name, step in steps.items():
        in_model = name in CALIBRATION
        products = ceilings.products if in_model else ceilings.products_float64
        table.add_row(
            name,
            f"{step.seconds:.2f}",
            _share(step.operations, step, products),
            _share(step.copied_bytes, step, ceilings.copies),
            f"{step.device_peak_bytes / GIB:.2f}",
            f"{step.host_peak_bytes / GIB:.2f}",
        )
    table.add_section()
    table.add_row("all", f"{seconds(steps.values()):.2f}")
    table.caption = (
        "Products: of the ceiling in the model's precision in a calibration, in float64 in "
        "solving, of which a GPU computes the eigenvectors in float32."
    )
    return table


def targets(result: Result, shape: Shape) -> dict[str, str]:
    """Each target with what was measured, and whether it is met. The memory of a CPU has none."""
    found = [
        ("seconds", result.seconds <= TARGET_SECONDS, f"{result.seconds:.1f}", TARGET_SECONDS),
        (
            "times as fast",
            result.speedup >= TARGET_SPEEDUP,
            f"{result.speedup:.1f}",
            TARGET_SPEEDUP,
        ),
        (
            "of the ceiling in calibration",
            result.calibration_share >= TARGET_SHARE,
            f"{result.calibration_share:.0%}",
            f"{TARGET_SHARE:.0%}",
        ),
    ]
    if result.peak_bytes:
        peak = result.peak_bytes / GIB
        found.append(("GiB", peak <= shape.peak_gib, f"{peak:.1f}", f"{shape.peak_gib:g}"))
    return {
        name: f"{measured} {name}, target {target}: {'met' if met else 'missed'}"
        for name, met, measured, target in found
    }


def seconds(steps: Iterable[Step]) -> float:
    return sum(step.seconds for step in steps)


def _share(amount: float, step: Step, ceiling: float) -> str:
    return f"{amount / step.measured_seconds / ceiling:.1%}" if amount else ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Times a compression on one GPU.")
    parser.add_argument("--shape", choices=SHAPES, default="llama-7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--blocks", type=int, help="measure so many blocks, extrapolate the rest")
    parser.add_argument("--baseline-blocks", type=int, default=1, help="the same of the baseline")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences of 2048 tokens")
    parser.add_argument("--device-gib", type=float, help="the device's memory for hidden states")
    parser.add_argument("--host-gib", type=float, help="the host's memory for hidden states")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    return parser


if __name__ == "__main__":
    sys.exit(main())

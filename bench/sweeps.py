"""Compares calibration by sweeps with automatic differentiation of the whole model.

    python -m bench.sweeps

Each measurement runs in a process of its own, on the demo's model with one thread; the two kinds
alternate. Sweeps read every block from the disk, as a worker does; the whole model is in memory.
Then one worker with all of a longer text is compared with two that have half of it each and solve
the groups that are theirs in a job: at the same time, and one of them with the machine to itself,
as if each had its own. Processes on one machine share its memory and caches, so two that have
nothing to do with each other are measured as well: each does all of the work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench import material
from bench.measuring import Meter
from workers.actors.placement import assign_owners
from workers.actors.worker import multiplies_bfloat16
from workers.compression.metrics import METHODS
from workers.compression.shapes import InputGroup
from workers.compression.solve import solve_group
from workers.compression.statistics import (
    GroupStatistics,
    Observing,
    accumulation_dtype,
    cross_entropy,
)
from workers.model.blocks import StoredModel, traced_groups
from workers.sweeps.boundaries import Boundaries
from workers.sweeps.calibration import CalibrationSweep, Observed
from workers.sweeps.passes import Kind, Sweeps

CPU = torch.device("cpu")
METHOD = METHODS["impact-kron"]
LENGTH = 256
AMPLE = 1 << 40

Statistics = dict[str, GroupStatistics]


def by_sweeps(
    source: Path, groups: Sequence[InputGroup], batches: Sequence[Tensor], *, mixed_precision: bool
) -> Statistics:
    """The statistics of all groups, block by block."""
    stored = StoredModel(source, CPU)
    observed = Observed(METHOD.observations, tuple(groups), accumulation_dtype(CPU))
    statistics: Statistics = {}
    with tempfile.TemporaryDirectory() as folder:
        boundaries = Boundaries({CPU: AMPLE}, Path(folder))
        sweep = CalibrationSweep(
            stored.passage,
            stored,
            observed,
            batches,
            boundaries,
            mixed_precision=mixed_precision,
        )
        for each in Sweeps(sweep.blocks, observed.gradients).all:
            match each.kind:
                case Kind.FORWARD:
                    sweep.forward(each.block)
                case Kind.LOSS:
                    sweep.loss()
                case Kind.BACKWARD:
                    statistics |= sweep.backward(each.block)
    return statistics


def by_whole_model(
    source: Path, groups: Sequence[InputGroup], batches: Sequence[Tensor], *, mixed_precision: bool
) -> Statistics:
    """The same, by one forward and one backward pass through the whole model for each batch."""
    model = material.load(source, CPU).requires_grad_(False)
    dtype = accumulation_dtype(CPU)
    statistics = {
        group: GroupStatistics.zeros(group, METHOD.observations, dtype=dtype, device=CPU)
        for group in groups
    }
    model.get_input_embeddings().register_forward_hook(lambda *each: each[2].requires_grad_())
    with Observing(model, statistics):
        for tokens in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed_precision):
                logits = model(input_ids=tokens, use_cache=False).logits
            scores = logits.detach()
            for sequence, labels in zip(scores, tokens[:, 1:], strict=True):
                cross_entropy(sequence[:-1], labels, differentiate=True)
                sequence[-1] = 0
            logits.backward(scores)
    for each in statistics.values():
        each.tokens = sum(tokens.numel() for tokens in batches)
    return {group.name: each for group, each in statistics.items()}


KINDS: dict[str, Callable[..., Statistics]] = {
    "sweeps": by_sweeps,
    "whole model": by_whole_model,
}


def measure(
    kind: str, source: Path, sequences: int, share: int, shares: int, *, mixed_precision: bool
) -> dict[str, Any]:
    """Calibrate on a share of the text, and solve as large a share of the groups."""
    torch.set_num_threads(1)
    groups = traced_groups(source)
    generator = torch.Generator().manual_seed(share)
    tokens = torch.randint(1000, 20_000, (sequences // shares, LENGTH), generator=generator)
    print("ready", flush=True)
    sys.stdin.readline()
    with Meter(CPU) as calibrated:
        batches = tokens.split(4)  # type: ignore[no-untyped-call]
        statistics = KINDS[kind](source, groups, batches, mixed_precision=mixed_precision)
    started = time.perf_counter()
    weights = StoredModel(source, CPU)
    for group in assign_owners(groups, shares)[share]:
        tensors = weights.read([f"{layer.name}.weight" for layer in group.layers])
        own = {layer.name: tensors[f"{layer.name}.weight"] for layer in group.layers}
        solve_group(group, own, statistics[group.name], METHOD)
    solving = time.perf_counter() - started
    cost = calibrated.cost
    return {
        "calibrate": cost.seconds,
        "solve": solving,
        "grown": cost.memory_peak - cost.memory_before,
    }


def run(
    kind: str, source: Path, sequences: int, *, processes: int = 1, shares: int = 1, float32: bool
) -> list[dict[str, Any]]:
    """Measure in processes that begin at once, each with one of the shares."""
    command = [sys.executable, "-m", "bench.sweeps", "--kind", kind, "--source", str(source)]
    command += ["--float32"] * float32
    command += ["--sequences", str(sequences), "--shares", str(shares), "--share"]
    running = [
        subprocess.Popen(
            [*command, str(number % shares)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]
    for process in running:
        assert process.stdout is not None
        while process.stdout.readline() != "ready\n":
            pass
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sequences", type=int, default=16, help=f"of {LENGTH} tokens")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--scaling-sequences", type=int, default=64, help="for one and two workers")
    parser.add_argument(
        "--float32", action="store_true", help="not in bfloat16, where the processor has it"
    )
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--shares", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.kind is not None:
        mixed_precision = not given.float32 and multiplies_bfloat16(CPU)
        found_here = measure(
            given.kind,
            given.source,
            given.sequences,
            given.share,
            given.shares,
            mixed_precision=mixed_precision,
        )
        print(json.dumps(found_here))
        return
    source = material.model_folder(None, material.STATE)
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(given.repetitions):
        for kind, results in found.items():
            results += run(kind, source, given.sequences, float32=given.float32)
    for kind, results in found.items():
        calibrating = median(each["calibrate"] for each in results)
        grown = median(each["grown"] for each in results)
        print(f"{kind}: {calibrating:.1f} s, {grown / 2**20:.0f} MiB beyond what was there before")
    ratio = median(each["calibrate"] for each in found["sweeps"]) / median(
        each["calibrate"] for each in found["whole model"]
    )
    print(f"sweeps take {ratio:.2f} times as long as the whole model")
    ways = {"one": (1, 1), "two": (2, 2), "alone": (1, 2), "unrelated": (2, 1)}
    seconds = {}
    for way, (processes, shares) in ways.items():
        results = run(
            "sweeps",
            source,
            given.scaling_sequences,
            processes=processes,
            shares=shares,
            float32=given.float32,
        )
        seconds[way] = max(each["calibrate"] + each["solve"] for each in results)
    one = seconds["one"]
    print(f"one worker calibrates and solves in {one:.1f} s")
    print(f"two workers are {one / seconds['two']:.2f} times as fast")
    print(f"with a machine for each they are {one / seconds['alone']:.2f} times as fast")
    print(f"two unrelated processes do {2 * one / seconds['unrelated']:.2f} times the work of one")


if __name__ == "__main__":
    main()

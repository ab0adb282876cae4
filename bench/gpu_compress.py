"""One compression by sweeps on one device, as a worker does it, block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bench import gpu_operations as operations
from bench.gpu_measuring import Stopwatch
from bench.gpu_model import RandomModel, Shape
from workers.compression.allocation import allocate_uniform
from workers.compression.eigen import solving_dtype
from workers.compression.interpolation import interpolate
from workers.compression.metrics import METHODS
from workers.compression.shapes import InputGroup
from workers.compression.solve import Solution, solve_group
from workers.compression.statistics import GroupStatistics, accumulation_dtype
from workers.sweeps.boundaries import Boundaries, held, stride
from workers.sweeps.calibration import CalibrationSweep, Observed
from workers.sweeps.copies import copies

DEFAULT_METHOD = "impact-kron"
SOLVED = ("impact", DEFAULT_METHOD)
CALIBRATION = ("embed", "forward", "loss", "backward")


@dataclass(frozen=True)
class Room:
    """How much memory hidden states may take, and every how many blocks one is kept."""

    device_bytes: int
    host_bytes: int
    keep_every: int
    device_bytes_missing: int = 0
    """What they take of the device in the whole model, but not in the measured blocks."""

    @classmethod
    def of(
        cls, shape: Shape, blocks: int, boundary_bytes: int, device_bytes: int, host_bytes: int
    ) -> Room:
        """The room of the whole model, reduced in proportion if `blocks` are fewer than its own.

        So the measured blocks copy as large a share of their hidden states to the host.
        Raises BoundariesTooLarge.
        """
        every = stride(shape.blocks, boundary_bytes, device_bytes + host_bytes)
        share = held(blocks, every) / held(shape.blocks, every)
        used = min(device_bytes, held(shape.blocks, every) * boundary_bytes)
        device, host = int(device_bytes * share), int(host_bytes * share)
        return cls(device, host, every, max(0, used - int(used * share)))


def compress(
    model: RandomModel,
    shape: Shape,
    batches: Sequence[Tensor],
    room: Room,
    keep: float,
    watch: Stopwatch,
    factor: float,
    folder: Path,
) -> None:
    """Calibrate for both methods, solve by both, and truncate by the default one.

    Every layer keeps the same share of its parameters, so that it can be truncated at once.
    """
    device = model.passage.device
    host = torch.device("cpu")
    tiers = {device: room.device_bytes + room.host_bytes}
    if device.type == "cuda":
        tiers = {device: room.device_bytes, host: room.host_bytes}
    observed = Observed(
        METHODS[DEFAULT_METHOD].observations, model.groups, accumulation_dtype(device)
    )
    tokens = sum(batch.numel() for batch in batches)
    state_bytes = tokens * shape.hidden * model.passage.model.dtype.itemsize
    with watch.step("embed", copied_bytes=state_bytes):
        sweep = CalibrationSweep(
            model.passage,
            model.weights,
            observed,
            batches,
            Boundaries(tiers, folder, copies(device)),
            keep_every=room.keep_every,
        )
    for number in range(sweep.blocks):
        needed = operations.forward(shape, model.groups_of(number), tokens)
        with watch.step("forward", factor, operations=needed, copied_bytes=2 * state_bytes):
            sweep.forward(number)
    needed = operations.head(shape, tokens - sum(len(batch) for batch in batches))
    with watch.step("loss", operations=needed, copied_bytes=2 * state_bytes):
        sweep.loss()
    for number in reversed(range(sweep.blocks)):
        needed = operations.backward(shape, model.groups_of(number), tokens)
        with watch.step("backward", factor, operations=needed, copied_bytes=3 * state_bytes):
            statistics = sweep.backward(number)
        with model.weights.hold(number):
            for group in model.groups_of(number):
                _compress_group(model, group, statistics.pop(group.name), keep, watch, factor)


@torch.no_grad()
def _compress_group(
    model: RandomModel,
    group: InputGroup,
    statistics: GroupStatistics,
    keep: float,
    watch: Stopwatch,
    factor: float,
) -> None:
    modules = {layer.name: model.passage.model.get_submodule(layer.name) for layer in group.layers}
    weights = {name: module.weight for name, module in modules.items()}
    solutions: dict[str, Solution] = {}
    for method in SOLVED:
        solutions.clear()
        with watch.step(f"solve {method}", factor, operations=operations.solving(group)):
            solutions |= solve_group(
                group,
                weights,
                statistics,
                METHODS[method],
                dtype=solving_dtype(model.passage.device),
            )
    for name, solution in solutions.items():
        rank = kept_rank(solution, keep)
        needed = operations.truncating(solution.layer, rank)
        with watch.step("truncate and interpolate", factor, operations=needed):
            interpolate(solution.truncate(rank, weights[name], _bias(modules[name])))


def kept_rank(solution: Solution, keep: float) -> int:
    """The largest rank with which the layer keeps at most this share of its parameters."""
    candidates = solution.options()
    budget = math.floor(keep * candidates.dense_cost)
    rank = allocate_uniform([candidates], budget)[candidates.name]
    assert rank is not None
    return rank


def _bias(module: nn.Module) -> Tensor | None:
    return module.bias if isinstance(module.bias, Tensor) else None

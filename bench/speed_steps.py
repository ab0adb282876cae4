"""Runs the steps of one compression in this process, and measures time and peak memory."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from bench.material import calibrated, groups_of, load, solved, truncated
from bench.measuring import Cost, Meter
from service.domain.spec.job import JobSpec
from service.domain.spec.targets import WIDTHS
from workers.artifact.checkpoint_writer import write_checkpoint
from workers.compression.allocation import global_allocation
from workers.compression.candidates import Width
from workers.compression.interpolation import interpolate
from workers.compression.metrics import METHODS
from workers.compression.rounding.group import round_group
from workers.compression.shapes import InputGroup
from workers.compression.solve import Solution
from workers.compression.statistics import GroupStatistics, Observation
from workers.model.loading import load_model, stored_dtype

METHOD_NAME: str = JobSpec.model_fields["method"].default
METHOD = METHODS[METHOD_NAME]
KEEP = 0.6
ROUNDED = [Width(bits) for bits in WIDTHS["transformers"]]

LLAMA_2_7B: dict[str, Any] = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True)
class Steps:
    """The cost of every step, in order, and the unchanged source model."""

    costs: dict[str, Cost]
    layers: int
    model: Any


def run_steps(source: Path, batches: list[Tensor], scratch: Path) -> Steps:
    """Compress the model of a folder to `KEEP` of its linear parameters, and load the result.

    Then round its layers at every width, as jobs with a target in bytes do. Writes the checkpoint
    below `scratch`.
    """
    device = batches[0].device
    costs: dict[str, Cost] = {}

    @contextmanager
    def step(name: str) -> Iterator[None]:
        gc.collect()  # frees the memory of earlier steps
        with Meter(device) as meter:
            yield
        costs[name] = meter.cost

    with step("load"):
        model = load(source, device)
        groups = groups_of(model)
    with step("calibrate"):
        statistics = calibrated(model, groups, batches, METHOD.observations)
    with step("solve"):
        solutions = _solve(model, groups, statistics)
    with step("allocate"):
        options = [solution.options() for solution in solutions.values()]
        budget = math.floor(KEEP * sum(layer.dense_cost for layer in options))
        chosen = global_allocation(options)(budget)
        ranks = {name: rank for name, rank in chosen.items() if rank is not None}
    with step("truncate"):
        stored = {
            name: interpolate(truncated(model, solutions[name], rank))
            for name, rank in ranks.items()
        }
    folder = scratch / "compressed"
    with step("save"):
        write_checkpoint(
            source, folder, ranks, partial(map, stored.__getitem__), stored_dtype(source)
        )
    layers = len(solutions)
    del statistics, solutions, stored
    with step("load the result"):
        load_model(folder, device, trust_remote_code=True)
    with step("calibrate for bits"):
        statistics = calibrated(
            model, groups, batches, METHOD.observations | {Observation.BOTH_SIDES}
        )
    with step("round"):
        for group in groups:
            weights = {
                layer.name: model.get_submodule(layer.name).weight.detach()
                for layer in group.layers
            }
            round_group(group, weights, statistics.pop(group.name), ROUNDED, torch.bfloat16)
    return Steps(costs, layers, model)


def _solve(
    model: Any, groups: tuple[InputGroup, ...], statistics: dict[str, GroupStatistics]
) -> dict[str, Solution]:
    """Solve all groups; drop statistics after use, and keep solutions in the host's memory."""
    solutions: dict[str, Solution] = {}
    for group in groups:
        found = solved(model, group, statistics.pop(group.name), METHOD)
        solutions |= {name: solution.to_host() for name, solution in found.items()}
    return solutions


def save_random_model(folder: Path, blocks: int, dtype: torch.dtype) -> Path:
    """A folder with a model of random weights in the shapes of Llama-2-7B, `blocks` deep."""
    config = LlamaConfig(**LLAMA_2_7B, num_hidden_layers=blocks, dtype=dtype)
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    return folder

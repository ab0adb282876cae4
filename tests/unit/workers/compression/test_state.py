"""Statistics and solutions are restored exactly, and later results are bit-identical."""

from __future__ import annotations

from dataclasses import astuple, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.models import ARCHITECTURES, tiny_llama_config, tiny_model
from workers.compression.layers import compressible_layers, input_groups
from workers.compression.metrics import METHODS
from workers.compression.shapes import InputGroup
from workers.compression.solve import Solution, solve_group
from workers.compression.state import (
    clear_statistics,
    load_statistics,
    read_solution,
    solution_tensors,
    statistics_tensors,
)
from workers.compression.statistics import Calibration, GroupStatistics, Observation
from workers.compression.unfuse import unfuse

EVERYTHING = frozenset(Observation)


def batch(seed: int) -> Tensor:
    return torch.randint(258, (4, 12), generator=torch.Generator().manual_seed(seed))


class Run:
    """A model that is calibrated batch by batch."""

    def __init__(self, config: Any = None, observations: Any = EVERYTHING) -> None:
        self.model = tiny_model(config or tiny_llama_config(attention_bias=True))
        unfuse(self.model)
        self.groups = input_groups(self.model, compressible_layers(self.model))
        self.statistics = Calibration.zeros(self.model, self.groups, observations, torch.float64)

    def calibrate(self, *seeds: int) -> Run:
        with Calibration(self.model, self.groups, self.statistics) as calibration:
            for seed in seeds:
                calibration.run(batch(seed))
        return self

    def solve(self, group: InputGroup, method: str) -> dict[str, Solution]:
        modules = {layer.name: self.model.get_submodule(layer.name) for layer in group.layers}
        return solve_group(
            group,
            {name: module.weight for name, module in modules.items()},
            {name: module.bias for name, module in modules.items()},
            self.statistics[group.name],
            METHODS[method],
        )


def stored(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As they come back from a file: in other memory, at an odd place."""
    moved = {}
    for name, tensor in tensors.items():
        memory = bytearray(3 + tensor.nbytes)
        if tensor.nbytes:
            memory[3:] = tensor.contiguous().numpy().tobytes()
            flat = torch.frombuffer(memory, dtype=tensor.dtype, offset=3, count=tensor.numel())
        else:
            flat = torch.empty(0, dtype=tensor.dtype)
        moved[name] = flat.reshape(tensor.shape)
    return moved


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def saved(run: Run) -> dict[str, dict[str, Tensor]]:
    return {name: statistics_tensors(group) for name, group in run.statistics.items()}


def test_calibration_goes_on_as_if_it_had_never_stopped() -> None:
    whole = Run().calibrate(1, 2, 3, 4)
    first, second = Run().calibrate(1, 2), Run()
    for name, group in second.statistics.items():
        load_statistics(group, stored(statistics_tensors(first.statistics[name])))
    second.calibrate(3, 4)
    for name, tensors in saved(whole).items():
        assert same(tensors, saved(second)[name])
        ours, theirs = whole.statistics[name], second.statistics[name]
        assert (ours.rows, ours.tokens) == (theirs.rows, theirs.tokens) == (192, 192)


def test_everything_that_statistics_hold_is_kept() -> None:
    """A field that is added to them must be added to their tensors."""
    kept = {"inputs", "outputs", "magnitudes", "rows", "tokens"}
    assert {field.name for field in fields(GroupStatistics)} == kept | {
        "gradient_squares",
        "gradient_moments",
        "row_fisher",
    }


def test_cleared_statistics_are_empty_ones() -> None:
    used, fresh = Run().calibrate(1), Run()
    for name, group in used.statistics.items():
        clear_statistics(group)
        assert same(statistics_tensors(group), statistics_tensors(fresh.statistics[name]))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("counts"),
        lambda tensors: tensors.update(more=torch.zeros(1)),
        lambda tensors: tensors.update(magnitudes=torch.zeros(3, dtype=torch.float64)),
        lambda tensors: tensors.update(magnitudes=tensors["magnitudes"].float()),
    ],
    ids=["missing", "unknown", "shape", "precision"],
)
def test_tensors_of_another_group_are_refused_and_change_nothing(change: Any) -> None:
    run = Run().calibrate(1)
    name = next(iter(run.statistics))
    before = {key: value.clone() for key, value in saved(run)[name].items()}
    tensors = statistics_tensors(run.statistics[name])
    change(tensors)
    with pytest.raises(ValueError, match="not those of this group"):
        load_statistics(run.statistics[name], tensors)
    assert same(saved(run)[name], before)


@pytest.mark.parametrize("method", METHODS)
def test_a_solution_that_was_stored_gives_the_same_factors(method: str) -> None:
    run = Run().calibrate(1)
    for group in run.groups:
        for name, solution in run.solve(group, method).items():
            tensors = stored(solution_tensors(solution))
            again = read_solution(solution.layer, solution.weight, solution.bias, tensors)
            assert again.max_rank == solution.max_rank
            offered, again_offered = solution.options(), again.options()
            assert torch.equal(offered.spectrum, again_offered.spectrum)
            assert offered.max_rank == again_offered.max_rank, name
            assert offered.fixed_cost == again_offered.fixed_cost, name
            for rank in (1, solution.max_rank):
                one, other = solution.truncate(rank), again.truncate(rank)
                for ours, theirs in zip(astuple(one), astuple(other), strict=True):
                    assert ours is theirs is None or torch.equal(ours, theirs)


def test_so_does_an_expert_that_no_token_reached() -> None:
    run = Run(ARCHITECTURES["mixtral"], METHODS["impact-kron"].observations).calibrate(1)
    (group,) = [each for each in run.groups if "experts.0.down_proj" in each.name][:1]
    run.statistics[group.name].rows = 0
    (solution,) = run.solve(group, "impact-kron").values()
    again = read_solution(solution.layer, solution.weight, None, stored(solution_tensors(solution)))
    assert solution.max_rank == again.max_rank == 0
    assert again.mean is None

"""Solved layers are restored exactly, and their factors are bit-identical."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.calibration import calibrated
from tests.fixtures.models import ARCHITECTURES, tiny_llama_config, tiny_model
from workers.compression.candidates import Width
from workers.compression.layers import compressible_layers, input_groups
from workers.compression.metrics import METHODS
from workers.compression.rounding.group import round_group
from workers.compression.shapes import InputGroup
from workers.compression.solve import Solution, solve_group
from workers.compression.state import SolvedLayer, read_solved, solved_tensors
from workers.compression.statistics import Observation
from workers.compression.unfuse import unfuse

EVERYTHING = frozenset(Observation)


TOKENS = torch.randint(258, (4, 12), generator=torch.Generator().manual_seed(1))


class Run:
    """A model and its statistics."""

    def __init__(self, config: Any = None, observations: Any = EVERYTHING) -> None:
        self.model = tiny_model(config or tiny_llama_config(attention_bias=True))
        unfuse(self.model)
        self.groups = input_groups(self.model, compressible_layers(self.model))
        self.statistics = calibrated(
            self.model, TOKENS, observations=observations, groups=self.groups
        )

    def solve(self, group: InputGroup, method: str) -> dict[str, Solution]:
        modules = {layer.name: self.model.get_submodule(layer.name) for layer in group.layers}
        return solve_group(
            group,
            {name: module.weight for name, module in modules.items()},
            self.statistics[group.name],
            METHODS[method],
        )

    def solved(self, group: InputGroup, method: str) -> dict[str, SolvedLayer]:
        """The group's layers solved, and rounded at two widths."""
        weights = {each.name: self.model.get_submodule(each.name).weight for each in group.layers}
        rounded = round_group(
            group, weights, self.statistics[group.name], [Width(3), Width(8)], torch.float16
        )
        return {
            name: SolvedLayer(solution, tuple(rounded[name]))
            for name, solution in self.solve(group, method).items()
        }


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


@pytest.mark.parametrize("method", METHODS)
def test_a_solution_that_was_stored_gives_the_same_factors(method: str) -> None:
    run = Run()
    for group in run.groups:
        for name, solution in run.solve(group, method).items():
            module = run.model.get_submodule(name)
            weight, bias = module.weight.detach(), module.bias
            tensors = solved_tensors(SolvedLayer(solution))
            again = read_solved(solution.layer, stored(tensors)).solution
            assert again.max_rank == solution.max_rank
            offered, again_offered = solution.options(), again.options()
            assert torch.equal(offered.spectrum, again_offered.spectrum)
            assert offered.max_rank == again_offered.max_rank, name
            assert offered.fixed_cost == again_offered.fixed_cost, name
            for rank in (1, solution.max_rank):
                one, other = (each.truncate(rank, weight, bias) for each in (solution, again))
                for ours, theirs in zip(astuple(one), astuple(other), strict=True):
                    assert ours is theirs is None or torch.equal(ours, theirs)


def test_so_does_an_expert_that_no_token_reached() -> None:
    run = Run(ARCHITECTURES["mixtral"], METHODS["impact-kron"].observations)
    (group,) = [each for each in run.groups if "experts.0.down_proj" in each.name][:1]
    run.statistics[group.name].rows = 0
    (solution,) = run.solve(group, "impact-kron").values()
    tensors = solved_tensors(SolvedLayer(solution))
    again = read_solved(solution.layer, stored(tensors)).solution
    assert solution.max_rank == again.max_rank == 0
    assert again.mean is None


def test_rounded_weights_and_their_prices_come_back() -> None:
    run = Run()
    for group in run.groups:
        for solved in run.solved(group, "impact-kron").values():
            again = read_solved(solved.layer, stored(solved_tensors(solved)))
            assert again.options(2).rounded == solved.options(2).rounded
            for width in (Width(3), Width(8)):
                one, other = solved.weight(width), again.weight(width)
                assert torch.equal(one.codes, other.codes)
                assert torch.equal(one.scales, other.scales)

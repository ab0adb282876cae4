"""The formulas agree with the engine's own code, and with what tiny models do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import MixtralConfig

from service.domain.costs import formulas
from service.domain.costs.formulas import (
    OBSERVED,
    backward_operations,
    forward_operations,
    recomputed,
    rounded_bytes,
    solution_bytes,
    solve_operations,
    statistics_numbers,
    statistics_operations,
)
from service.domain.costs.shapes import Group, Linear, Model, model_shapes
from tests.fixtures.calibration import calibrated, sweep, swept
from tests.fixtures.models import ARCHITECTURES, tiny_llama_config, tiny_model
from workers.compression import statistics
from workers.compression.candidates import Width
from workers.compression.errors import BoundariesTooLarge
from workers.compression.layers import compressible_layers, input_groups
from workers.compression.metrics import METHODS
from workers.compression.rounding.group import round_group
from workers.compression.shapes import InputGroup, LinearLayer
from workers.compression.solve import solve_group
from workers.compression.state import SolvedLayer, solved_tensors
from workers.compression.statistics import GRADIENTS, GroupStatistics, Observation
from workers.compression.unfuse import unfuse
from workers.evaluation.sweep import EvaluationSweep
from workers.sweeps import boundaries
from workers.sweeps.boundaries import Boundaries
from workers.sweeps.calibration import CalibrationSweep, Observed
from workers.sweeps.passage import InMemory, Passage

CPU = torch.device("cpu")
SIZES = {"hidden_size": 96, "intermediate_size": 220, "head_dim": 16, "num_attention_heads": 6}


def shapes(config: Any) -> Model:
    return model_shapes(config.to_dict() | {"dtype": "float32"})


def same(group: InputGroup) -> Group:
    layers = [Linear(each.out_features, each.in_features, each.has_bias) for each in group.layers]
    return Group(tuple(layers))


def tokens(length: int, batch: int = 2) -> Tensor:
    return torch.randint(258, (batch, length), generator=torch.Generator().manual_seed(0))


def groups_of(model: Any) -> tuple[InputGroup, ...]:
    unfuse(model)
    return input_groups(model, compressible_layers(model))


def test_methods_and_constants_are_the_engine_s() -> None:
    for name, method in METHODS.items():
        assert OBSERVED[name] == {each.value for each in method.observations}
    assert OBSERVED.keys() == METHODS.keys()
    assert {each.value for each in GRADIENTS} == formulas.GRADIENTS
    assert statistics.GRAM_BLOCK == formulas.GRAM_BLOCK


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral"])
def test_statistics_have_as_many_numbers_as_the_engine_s(name: str, method: str) -> None:
    for group in groups_of(tiny_model(ARCHITECTURES[name])):
        zeros = GroupStatistics.zeros(
            group, METHODS[method].observations, dtype=torch.float64, device=CPU
        )
        moments = [zeros.inputs, *zeros.outputs.values()]
        tensors = [each for m in moments if m is not None for each in (m.average, m.scatter)]
        tensors += [each for sums in zeros.sums() for each in sums.values()]
        tensors += [] if zeros.magnitudes is None else [zeros.magnitudes]
        assert 8 * statistics_numbers(same(group), method) == sum(each.nbytes for each in tensors)
        assert sum(solve_operations(same(group))) == group.solve_operations


@pytest.mark.parametrize("method", METHODS)
def test_solutions_take_the_predicted_bytes(method: str) -> None:
    model = tiny_model(tiny_llama_config())
    chosen = METHODS[method]
    found = calibrated(model, tokens(40), observations=chosen.observations)
    for group in groups_of(model):
        weights = {each.name: model.get_submodule(each.name).weight for each in group.layers}
        solved = solve_group(group, weights, found[group.name], chosen)
        for layer, shape in zip(group.layers, same(group).layers, strict=True):
            tensors = solved_tensors(SolvedLayer(solved[layer.name].to_host()))
            stored = sum(each.nbytes for each in tensors.values())
            assert solution_bytes(shape, method, 4) == stored


WIDTHS = (4, 8)


@pytest.mark.parametrize("name", ["llama", "phi3"])
def test_integers_need_the_predicted_statistics_and_bytes(name: str) -> None:
    model = tiny_model(ARCHITECTURES[name])
    observations = METHODS["impact-kron"].observations | {Observation.BOTH_SIDES}
    for group in groups_of(model):
        zeros = GroupStatistics.zeros(group, observations, dtype=torch.float64, device=CPU)
        assert zeros.inputs is not None
        tensors = [zeros.inputs.average, zeros.inputs.scatter]
        tensors += [each for sums in zeros.sums() for each in sums.values()]
        predicted = statistics_numbers(same(group), "impact-kron", WIDTHS)
        assert 8 * predicted == sum(each.nbytes for each in tensors)
        weights = {each.name: model.get_submodule(each.name).weight for each in group.layers}
        zeros.tokens = 1  # none of which has reached the layers
        widths = [Width(bits) for bits in WIDTHS]
        found = round_group(group, weights, zeros, widths, torch.bfloat16)
        for layer, shape in zip(group.layers, same(group).layers, strict=True):
            held = sum(each.weight.nbytes + 8 for each in found[layer.name])
            assert rounded_bytes(shape, WIDTHS, 2) == held


def test_a_solution_s_rank_counts_the_bias() -> None:
    layer = LinearLayer("one", 24, 40, has_bias=True)
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    zeros = GroupStatistics.zeros(
        InputGroup((layer,)), frozenset(), dtype=torch.float64, device=CPU
    )
    zeros.rows = zeros.tokens = 1
    (solved,) = solve_group(InputGroup((layer,)), {"one": weight}, zeros, METHODS["svd"]).values()
    stored = sum(each.nbytes for each in solved_tensors(SolvedLayer(solved)).values())
    assert solution_bytes(Linear(24, 40, bias=True), "svd", 4) == stored


@given(st.integers(1, 130), st.integers(1, 200), st.integers(0, 20_000))
def test_strides_are_the_engine_s(blocks: int, size: int, capacity: int) -> None:
    predicted = formulas.stride(blocks, size, capacity)
    assert formulas.held(blocks, predicted) == boundaries.held(blocks, predicted)
    try:
        assert predicted == boundaries.stride(blocks, size, capacity)
    except BoundariesTooLarge:
        assert formulas.held(blocks, predicted) * size > capacity
        assert all(
            formulas.held(blocks, predicted) <= boundaries.held(blocks, s)
            for s in range(1, blocks + 1)
        )


class Peak(Boundaries):
    """Knows how many tensors it has held at once."""

    most = 0

    def put(self, key: Any, tensor: Tensor) -> None:
        super().put(key, tensor)
        self.most = max(self.most, len(self._held) + len(self._files))


class Counted(InMemory):
    """Knows how often each block was held."""

    def __init__(self, passage: Any) -> None:
        super().__init__(passage)
        self.held: Counter[int] = Counter()

    @contextmanager
    def hold(self, number: int, following: int | None = None) -> Iterator[nn.Module]:
        self.held[number] += 1
        with super().hold(number, following) as block:
            yield block


@pytest.mark.parametrize(("blocks", "stride"), [(1, 1), (2, 1), (2, 2), (7, 1), (7, 3), (7, 5)])
def test_a_sweep_holds_and_repeats_what_is_predicted(
    blocks: int, stride: int, tmp_path: Path
) -> None:
    model = tiny_model(tiny_llama_config(num_hidden_layers=blocks))
    passage = Passage(model)
    observed = Observed(METHODS["impact"].observations, groups_of(model), torch.float64)
    kept, weights = Peak({CPU: 1 << 30}, tmp_path), Counted(passage)
    swept(CalibrationSweep(passage, weights, observed, [tokens(4, 1)], kept, keep_every=stride))
    assert formulas.held(blocks, stride) - 1 <= kept.most <= formulas.held(blocks, stride)
    assert weights.held.total() == 2 * blocks + recomputed(blocks, stride)


@pytest.mark.parametrize("method", ["impact-kron", "impact", "afm", "fwsvd", "svd"])
def test_operations_of_a_sweep(method: str) -> None:
    """A real sweep, counted by torch; the eager attention, because torch counts no other here."""
    config = tiny_llama_config(**SIZES, num_hidden_layers=2)
    config._attn_implementation = "eager"
    length, batch = 24, 2
    gradients = bool(METHODS[method].observations & GRADIENTS)
    running = sweep(tiny_model(config), [tokens(length, batch)], METHODS[method].observations)
    forward = backward = loss = 0
    with FlopCounterMode(display=False) as counter:
        for number in range(2):
            running.forward(number)
        forward = counter.get_total_flops()
        running.loss()
        loss = counter.get_total_flops() - forward
        for number in reversed(range(2)) if gradients else ():
            running.backward(number)
        backward = counter.get_total_flops() - forward - loss

    model, rows = shapes(config), length * batch
    observed = rows * sum(
        group.active * sum(statistics_operations(group, method))
        for block in model.blocks
        for group in block.groups
    )
    there = rows * sum(forward_operations(block, length) for block in model.blocks)
    back = rows * sum(backward_operations(block, length) for block in model.blocks)
    assert forward == pytest.approx(there + (0 if gradients else observed), rel=0.05)
    assert backward == pytest.approx(there + back + observed if gradients else 0, rel=0.05)
    predicted = rows * 2 * model.hidden * model.vocabulary * (1 + gradients)
    assert loss == pytest.approx(predicted, rel=0.05)


def test_experts_are_passed_by_as_many_tokens_as_they_get() -> None:
    config = MixtralConfig(**ARCHITECTURES["mixtral"].to_dict())
    config._attn_implementation = "eager"
    model = tiny_model(config)
    unfuse(model)
    running = sweep(model, [tokens(24)], METHODS["afm"].observations)
    with FlopCounterMode(display=False) as counter:
        running.forward(0)
    block = shapes(config).blocks[0]
    expected = forward_operations(block, 24) + sum(
        group.active * sum(statistics_operations(group, "afm")) for group in block.groups
    )
    assert counter.get_total_flops() == pytest.approx(2 * 24 * expected, rel=0.05)


def test_variants_share_the_blocks_and_have_hidden_states_of_their_own(tmp_path: Path) -> None:
    model = tiny_model(tiny_llama_config(num_hidden_layers=3))
    passage = Passage(model)
    kept, weights = Peak({CPU: 1 << 30}, tmp_path), Counted(passage)
    batches = [[[1, 2, 3]], [[4, 5, 6]]]
    measuring = EvaluationSweep(passage, weights, batches, [{}] * 4, kept)
    for number in range(3):
        measuring.forward(number, [{}] * 4)
    assert kept.most == 4 * len(batches)
    assert weights.held == Counter(range(3))

"""Statistics of a model's layers agree with autograd and float64 sums over all tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.fixtures.calibration import Differentiated, calibrated, sweep, swept
from tests.fixtures.models import tiny_llama_config, tiny_model
from workers.compression import statistics as statistics_module
from workers.compression.errors import NotFinite
from workers.compression.layers import compressible_layers, input_groups
from workers.compression.metrics import METHODS
from workers.compression.statistics import (
    Moments,
    Observation,
    merged,
)

BATCH, LENGTH = 4, 12
TOKENS = BATCH * LENGTH


@pytest.fixture
def model() -> Any:
    return tiny_model(tiny_llama_config(attention_bias=True)).double()


@pytest.fixture
def input_ids() -> Tensor:
    return torch.randint(258, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))


EVERYTHING = frozenset(Observation) - {Observation.BOTH_SIDES}


def test_gradients_without_weight_gradients_equal_those_of_autograd(
    model: Any, input_ids: Tensor
) -> None:
    truth = Differentiated(model, input_ids)
    model.zero_grad(set_to_none=True)
    statistics = calibrated(model, input_ids, observations=EVERYTHING)
    squares = {
        name: tensor
        for group in statistics.values()
        for name, tensor in group.gradient_squares.items()
    }
    assert squares.keys() == truth.gradients.keys()
    for name, gradient in truth.gradients.items():
        torch.testing.assert_close(squares[name], gradient.square().sum(0), rtol=1e-9, atol=1e-15)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_gradient_moments_and_fisher_equal_those_of_autograd(model: Any, input_ids: Tensor) -> None:
    truth = Differentiated(model, input_ids)
    sides = set()
    for group in calibrated(model, input_ids, observations=EVERYTHING).values():
        for name, moment in group.gradient_moments.items():
            weight, gradient = model.get_submodule(name).weight.detach(), truth.gradients[name]
            full = gradient.T @ gradient
            out_is_smaller = weight.shape[0] <= weight.shape[1]
            sides.add(out_is_smaller)
            expected = full if out_is_smaller else weight.T @ full @ weight
            torch.testing.assert_close(moment, expected, rtol=1e-9, atol=1e-14)
            sequences = zip(gradient.reshape(BATCH, LENGTH, -1), truth.inputs[name], strict=True)
            fisher = sum((g.T @ x).square().sum(1) for g, x in sequences)
            torch.testing.assert_close(group.row_fisher[name], fisher, rtol=1e-9, atol=1e-14)
    assert sides == {True, False}


def test_both_sides_are_kept_in_full_if_rounding_wants_them(model: Any, input_ids: Tensor) -> None:
    truth = Differentiated(model, input_ids)
    smaller = calibrated(model, input_ids, observations=EVERYTHING)
    for name, group in calibrated(model, input_ids, observations=frozenset(Observation)).items():
        assert group.inputs is not None
        assert_moments(group.inputs, truth.inputs[name].flatten(0, 1))
        weights = {}
        for layer, moment in group.gradient_moments.items():
            gradient = truth.gradients[layer]
            torch.testing.assert_close(moment, gradient.T @ gradient, rtol=1e-9, atol=1e-14)
            weights[layer] = model.get_submodule(layer).weight.detach()
        (shapes,) = (
            each for each in input_groups(model, compressible_layers(model)) if each.name == name
        )
        reduced = group.on_smaller_sides(shapes, weights)
        for layer, moment in smaller[name].gradient_moments.items():
            found = reduced.gradient_moments[layer]
            torch.testing.assert_close(found, moment, rtol=1e-9, atol=1e-13)


def test_magnitudes_are_the_mean_of_the_absolute_input(model: Any, input_ids: Tensor) -> None:
    truth = Differentiated(model, input_ids)
    for name, group in calibrated(model, input_ids, observations=EVERYTHING).items():
        assert group.rows == TOKENS
        assert group.magnitudes is not None
        torch.testing.assert_close(group.magnitudes, truth.inputs[name].flatten(0, 1).abs().sum(0))


def test_in_mixed_precision_the_model_alone_is_in_bfloat16(model: Any, input_ids: Tensor) -> None:
    model.float()
    plain = calibrated(model, input_ids, observations=EVERYTHING)
    rows: dict[str, Tensor] = {}
    for layer in compressible_layers(model):
        model.get_submodule(layer.name).register_forward_hook(
            lambda *called, name=layer.name: rows.update({name: called[-1].detach()})
        )
    mixed = calibrated(model, input_ids, mixed_precision=True, observations=EVERYTHING)
    assert {output.dtype for output in rows.values()} == {torch.bfloat16}
    compared = 0
    for name, observed in mixed.items():
        for layer_name, moments in observed.outputs.items():
            if model.get_submodule(layer_name).bias is None:
                centred = rows[layer_name].flatten(0, 1).double()
                centred -= centred.mean(0)
                exact = centred.T @ centred
                torch.testing.assert_close(moments.scatter, exact, rtol=1e-5, atol=1e-5)
                compared += 1
        for ours, theirs in zip(observed.sums(), plain[name].sums(), strict=True):
            for layer_name, values in ours.items():
                error = (values - theirs[layer_name]).norm() / theirs[layer_name].norm()
                assert 0 < error < 0.1
    assert compared == 2  # the down projections


@pytest.mark.parametrize("method", ["svd", "asvd", "afm"])
def test_without_observed_gradients_there_is_no_backward_pass(
    model: Any, input_ids: Tensor, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a backward pass")

    monkeypatch.setattr(Tensor, "backward", refuse)
    statistics = calibrated(model, input_ids, observations=METHODS[method].observations)
    assert all(group.tokens == TOKENS for group in statistics.values())
    assert not any(sums for group in statistics.values() for sums in group.sums())


def test_moments_equal_those_of_all_tokens_at_once(model: Any, input_ids: Tensor) -> None:
    truth = Differentiated(model, input_ids)
    kept_outputs = 0
    for name, statistics in calibrated(model, input_ids, observations=EVERYTHING).items():
        assert statistics.tokens == TOKENS
        if statistics.inputs is not None:
            assert_moments(statistics.inputs, truth.inputs[name].flatten(0, 1))
        for layer, moments in statistics.outputs.items():
            module = model.get_submodule(layer)
            assert_moments(moments, truth.inputs[layer].flatten(0, 1) @ module.weight.detach().T)
            kept_outputs += 1
    assert kept_outputs == 2  # down_proj of each block: 32 outputs, 80 inputs


def assert_moments(moments: Moments, rows: Tensor) -> None:
    assert moments.count == len(rows)
    torch.testing.assert_close(moments.mean(), rows.mean(0))
    torch.testing.assert_close(moments.second_moment(), rows.T @ rows / len(rows))
    torch.testing.assert_close(moments.covariance(), torch.cov(rows.T, correction=0))


def test_the_loss_is_the_sum_over_predicted_tokens(model: Any, input_ids: Tensor) -> None:
    truth = Differentiated(model, input_ids).loss
    _, losses = swept(sweep(model, list(input_ids[:, None]), EVERYTHING))
    assert len(losses) == BATCH
    assert sum(losses) == pytest.approx(truth, rel=1e-12)


def test_shards_add_up_to_the_whole(model: Any, input_ids: Tensor) -> None:
    whole = calibrated(model, input_ids, observations=EVERYTHING)
    shards = [
        calibrated(model, rows, observations=EVERYTHING)
        for rows in (input_ids[:1], input_ids[1:2], input_ids[2:])
    ]
    for name, statistics in whole.items():
        total = merged(shard[name] for shard in shards)
        assert total.tokens == statistics.tokens
        for layer, squares in statistics.gradient_squares.items():
            torch.testing.assert_close(total.gradient_squares[layer], squares)
        pairs = [(total.inputs, statistics.inputs)]
        pairs += [(total.outputs[layer], moments) for layer, moments in statistics.outputs.items()]
        for found, expected in pairs:
            if found is not None and expected is not None:
                assert found.count == expected.count
                torch.testing.assert_close(found.scatter, expected.scatter)
                torch.testing.assert_close(found.average, expected.average)


def test_merging_leaves_the_shards_as_they_are(model: Any, input_ids: Tensor) -> None:
    shards = [
        calibrated(model, input_ids[:2], observations=EVERYTHING),
        calibrated(model, input_ids[2:], observations=EVERYTHING),
    ]
    name = next(iter(shards[0]))
    before = [shard[name].gradient_squares[name].clone() for shard in shards]
    once = merged(shard[name] for shard in shards)
    twice = merged(shard[name] for shard in shards)
    assert torch.equal(once.gradient_squares[name], twice.gradient_squares[name])
    for shard, kept in zip(shards, before, strict=True):
        assert torch.equal(shard[name].gradient_squares[name], kept)


@given(cuts=st.lists(st.integers(1, 39), max_size=5, unique=True), seed=st.integers(0, 99))
@settings(deadline=None)
def test_moments_do_not_depend_on_how_the_stream_is_cut(cuts: list[int], seed: int) -> None:
    rows = torch.randn(40, 5, generator=torch.Generator().manual_seed(seed)).double()
    moments = Moments.zeros(5, dtype=torch.float64, device=rows.device)
    for piece in torch.tensor_split(rows, sorted(cuts)):
        moments.update(piece)
    assert_moments(moments, rows)


def test_a_mean_far_from_zero_costs_no_digits_of_the_covariance() -> None:
    rows = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0)) + 300
    moments = Moments.zeros(6, dtype=torch.float32, device=rows.device)
    for piece in torch.tensor_split(rows, 16):
        moments.update(piece)
    truth = torch.cov(rows.double().T, correction=0)
    torch.testing.assert_close(moments.covariance(), truth, rtol=1e-4, atol=1e-4)


def tensor_core_product(left: Tensor, right: Tensor) -> Tensor:
    """Exact products, added 16 at a time to a float32 sum that is cut off, never rounded."""
    assert left.dtype == right.dtype == torch.bfloat16
    sums = torch.zeros(len(left), right.shape[1])
    for step in range(0, left.shape[1], 16):
        exact = sums + left[:, step : step + 16].double() @ right[step : step + 16].double()
        sums = exact.float()
        sums = torch.where(sums.abs() > exact.abs(), sums.nextafter(torch.zeros(())), sums)
    return sums


@pytest.fixture
def tensor_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_module, "on_tensor_cores", lambda rows: rows.itemsize == 2)
    monkeypatch.setattr(statistics_module, "product", tensor_core_product)


def activations() -> Tensor:
    """Rows in bfloat16 with correlated channels, outliers, and means up to 60 deviations away."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(6000, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    rows *= torch.logspace(-3, 2, 24)
    rows[:, ::5] += 60 * rows[:, ::5].std(0)
    rows[::1000, 3] = 3000.0  # as the first token of a sequence has
    return rows.bfloat16()


def scatter_error(found: Tensor, rows: Tensor) -> float:
    """The largest error relative to √(Dᵢ Dⱼ), where D is the diagonal of the true scatter."""
    truth = torch.cov(rows.double().T, correction=0) * len(rows)
    scale = truth.diagonal().sqrt()
    return float(((found.double() - truth) / scale / scale[:, None]).abs().max())


@pytest.mark.usefixtures("tensor_cores")
def test_moments_by_tensor_cores_are_nearly_as_exact_as_in_float32() -> None:
    rows = activations()
    moments = Moments.zeros(24, dtype=torch.float32, device=rows.device)
    for piece in (rows[:5000], rows[5000:]):
        moments.update(piece)
    mean = rows.double().mean(0)
    assert moments.count == len(rows)
    torch.testing.assert_close(moments.mean(), mean, rtol=1e-6, atol=1e-6)
    assert scatter_error(moments.scatter, rows) < 2e-5
    uncentred = tensor_core_product(rows.T, rows).double() - len(rows) * mean.outer(mean)
    assert scatter_error(uncentred, rows) > 1e-2
    centred = (rows.double() - mean).bfloat16()
    assert scatter_error(centred.double().T @ centred.double(), rows) > 1e-4


@pytest.mark.usefixtures("tensor_cores")
def test_a_sum_of_tensor_cores_is_not_longer_than_its_error_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths = []

    def product(left: Tensor, right: Tensor) -> Tensor:
        lengths.append(left.shape[1])
        return left.float() @ right.float()

    monkeypatch.setattr(statistics_module, "product", product)
    Moments.zeros(4, dtype=torch.float32, device=torch.device("cpu")).update(
        torch.ones(9000, 4, dtype=torch.bfloat16)
    )
    assert set(lengths) == {4096, 808}


@pytest.mark.usefixtures("tensor_cores")
def test_gradient_moments_by_tensor_cores_equal_those_in_float32(
    model: Any, input_ids: Tensor
) -> None:
    model.bfloat16()
    found = calibrated(model, input_ids, observations=EVERYTHING)
    with pytest.MonkeyPatch.context() as plain:
        plain.setattr(statistics_module, "on_tensor_cores", lambda _: False)
        plain.setattr(statistics_module, "product", lambda one, two: one.float() @ two.float())
        expected = calibrated(model, input_ids, observations=EVERYTHING)
    for name, group in expected.items():
        for layer, moment in group.gradient_moments.items():
            scale = moment.diagonal().sqrt()
            error = (found[name].gradient_moments[layer] - moment) / scale / scale[:, None]
            assert error.abs().max() < 1e-5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_gpu_keeps_within_the_error_of_its_emulation(dtype: torch.dtype) -> None:
    rows = activations().to(dtype)
    moments = Moments.zeros(24, dtype=torch.float32, device=torch.device("cuda"))
    moments.update(rows.cuda())
    assert scatter_error(moments.scatter.cpu(), rows) < 2**-14


def test_a_loss_that_is_not_finite_ends_the_calibration(model: Any, input_ids: Tensor) -> None:
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    with pytest.raises(NotFinite, match="loss on the calibration text is not finite"):
        calibrated(model, input_ids, observations=EVERYTHING)


def test_no_hook_outlives_the_calibration(model: Any, input_ids: Tensor) -> None:
    calibrated(model, input_ids, observations=EVERYTHING)
    assert not any(module._forward_hooks for module in model.modules())

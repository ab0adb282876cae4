"""Training of one layer, beside plain formulas in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from workers.compression.candidates import Width
from workers.compression.recovery import scales
from workers.compression.recovery.factors import DAMPING, STEP_SIZE, FactorTraining, Whitening
from workers.compression.recovery.scales import ScaledLinear, ScaleTraining
from workers.compression.recovery.training import BETAS, EPSILON, RoundedLayer, rate
from workers.compression.rounding.grid import RoundedWeight
from workers.compression.solve import Factors

CPU = torch.device("cpu")
OUT, IN, RANK, LOST = 7, 5, 3, 0.25


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def moment() -> Tensor:
    inputs = random(100, IN, seed=1) @ random(IN, IN, seed=2)
    return inputs.T @ inputs / 100


@pytest.fixture
def factors() -> Factors:
    return Factors(random(RANK, IN, seed=3), random(OUT, RANK, seed=4), random(OUT, seed=5))


def training(factors: Factors, moment: Tensor) -> FactorTraining:
    return FactorTraining(factors, LOST, Whitening.of("layer", moment), CPU)


def gradients(seed: int) -> dict[str, Tensor]:
    return {
        "down": random(RANK, IN, seed=seed),
        "up": random(OUT, RANK, seed=seed + 1),
        "bias": random(OUT, seed=seed + 2),
    }


def test_a_layer_in_training_computes_what_it_did(factors: Factors, moment: Tensor) -> None:
    begun = training(factors, moment).layer
    assert (begun.up @ begun.down).double().allclose(factors.up @ factors.down, atol=1e-5)
    # Its code has unit variance, but for the damping.
    variance = (begun.down.double() @ moment @ begun.down.double().T).diagonal()
    assert ((variance > 0.9) & (variance <= 1)).all()


def stepped(
    factors: Factors, moment: Tensor, all_gradients: list[dict[str, Tensor]], rates: Any
) -> Factors:
    """The same steps in float64, with the coordinates of the module's docstring written out."""
    values, vectors = torch.linalg.eigh(moment)
    root = vectors @ (values + DAMPING * values.mean()).sqrt().diag()  # x = root · w
    scale = (factors.down @ root).norm(dim=1)
    trained = {
        "down": (factors.down / scale[:, None]) @ root,
        "up": factors.up * scale,
        "bias": factors.bias,
    }
    sizes = {
        name: STEP_SIZE * math.sqrt(LOST) * float(each.square().mean().sqrt())
        for name, each in trained.items()
        if each is not None
    }
    means = {name: torch.zeros_like(each) for name, each in trained.items() if each is not None}
    squares = {name: torch.zeros_like(each) for name, each in means.items()}
    for step, (gradient, rate_) in enumerate(zip(all_gradients, rates, strict=True), 1):
        for name in means:
            each = gradient[name] / 10
            each = each @ torch.linalg.inv(root).T if name == "down" else each
            means[name] = BETAS[0] * means[name] + (1 - BETAS[0]) * each
            squares[name] = BETAS[1] * squares[name] + (1 - BETAS[1]) * each**2
            square = squares[name] / (1 - BETAS[1] ** step)
            least = EPSILON * square.mean().sqrt()
            change = means[name] / (1 - BETAS[0] ** step) / (square.sqrt() + least)
            trained[name] = trained[name] - sizes[name] * rate_ * change
    down, up, bias = trained["down"], trained["up"], trained["bias"]
    assert down is not None
    assert up is not None
    return Factors(down @ torch.linalg.inv(root), up, bias)


def test_steps_are_those_of_adam_in_white_coordinates(factors: Factors, moment: Tensor) -> None:
    layer = training(factors, moment)
    given, rates = [gradients(10 * step) for step in range(4)], [0.5, 1.0, 0.7, 0.2]
    for each, factor in zip(given, rates, strict=True):
        half = {name: gradient / 2 for name, gradient in each.items()}
        layer.step([half, half], 10, factor)
    expected = stepped(factors, moment, given, rates)
    for name in ("down", "up", "bias"):
        moved = getattr(layer.layer, name).double()
        assert moved.allclose(getattr(expected, name), rtol=1e-4, atol=1e-5), name


def test_a_layer_that_has_lost_nothing_and_one_without_gradients_do_not_move(
    factors: Factors, moment: Tensor
) -> None:
    whole = FactorTraining(factors, 0.0, Whitening.of("layer", moment), CPU)
    before = whole.layer
    whole.step([gradients(1)], 10, 1.0)
    assert torch.equal(whole.layer.up, before.up)
    layer = training(factors, moment)
    before = layer.layer
    layer.step([{name: torch.zeros_like(each) for name, each in gradients(1).items()}], 10, 1.0)
    assert torch.equal(layer.layer.down, before.down)


def test_going_back_and_resuming_are_exact(factors: Factors, moment: Tensor) -> None:
    layer, other = training(factors, moment), training(factors, moment)
    layer.step([gradients(1)], 10, 1.0)
    layer.keep()
    kept = layer.layer
    other.resume({name: each.clone() for name, each in layer.state().items()})
    for each in (layer, other):
        each.step([gradients(2)], 10, 0.5)
    assert torch.equal(layer.layer.down, other.layer.down)
    assert not torch.equal(layer.layer.down, kept.down)
    layer.go_back()
    assert torch.equal(layer.layer.down, kept.down)
    ended = training(factors, moment)
    ended.resume(layer.state(ended=True))
    assert torch.equal(ended.layer.down, kept.down)
    assert {name.partition(".")[0] for name in layer.state(ended=True)} == {"value"}


@pytest.fixture(params=[2, 4])
def rounded(request: pytest.FixtureRequest) -> RoundedLayer:
    width = Width(request.param)
    codes = torch.arange(OUT * 6).reshape(OUT, 6) % (2 * width.highest + 1) + width.lowest
    weight = RoundedWeight(width, codes.to(torch.int8), random(OUT, 2, seed=6).bfloat16())
    return RoundedLayer(weight, random(OUT, seed=7))


def test_a_layer_in_few_bits_computes_what_its_weight_does(rounded: RoundedLayer) -> None:
    x, weight = random(4, 6, seed=8), rounded.weight.dequantized(torch.float64)
    assert rounded.bias is not None
    module = ScaledLinear(rounded)
    output = module(x)
    assert output.allclose(x @ weight.T + rounded.bias, rtol=1e-12)
    output.square().sum().backward()
    # ∂ℓ/∂scale of a group is the sum over it of ∂ℓ/∂weight · code.
    by_weight = (2 * output.detach()).T @ x * rounded.weight.codes.double()
    expected = by_weight.reshape(OUT, 2, 3).sum(-1)
    assert module.gradients()["scales"].double().allclose(expected, rtol=1e-5)
    assert module.gradients().keys() == {"scales"}


def test_a_scale_moves_by_a_share_of_itself(rounded: RoundedLayer) -> None:
    layer, before = ScaleTraining(rounded, CPU), rounded.weight.scales.double()
    given = random(OUT, 2, seed=9)
    for _ in range(8):
        layer.step([{"scales": given}], 10, 1.0)
    after = layer.layer.weight
    assert torch.equal(after.codes, rounded.weight.codes)
    assert after.scales.dtype == rounded.weight.scales.dtype
    assert layer.layer.bias is not None
    # Equal gradients make Adam's steps their signs, but for epsilon.
    share = scales.STEP_SIZE * 2.0 ** (scales.STEP_BITS - rounded.weight.width.bits)
    expected = before - 8 * share * before.abs() * given.sign()
    moved = layer.state()["value.scales"].double()
    assert moved.allclose(expected, rtol=1e-3)
    assert torch.equal(moved.bfloat16(), after.scales)


def test_an_input_that_is_always_zero_does_no_harm(factors: Factors) -> None:
    layer = training(factors, torch.zeros(IN, IN, dtype=torch.float64))
    layer.step([gradients(1)], 10, 1.0)
    assert all(each.isfinite().all() for each in layer.state().values())


@pytest.mark.parametrize("steps", [1, 2, 24, 1000])
def test_the_rate_grows_and_then_falls(steps: int) -> None:
    rates = [rate(step, steps) for step in range(steps)]
    highest = rates.index(max(rates))
    assert max(rates) == 1.0
    assert highest <= max(1, 0.1 * steps)
    assert all(0 < each <= 1 for each in rates)
    assert rates[highest:] == sorted(rates[highest:], reverse=True)

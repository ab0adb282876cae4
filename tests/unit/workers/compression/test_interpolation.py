"""The stored form of a low-rank layer agrees with its factors."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from workers.compression.checkpoint import replace_layers
from workers.compression.interpolation import interpolate
from workers.compression.solve import Factors


def random_factors(out: int, inner: int, rank: int, seed: int, *, bias: bool) -> Factors:
    """Factors as a solver gives them: orthonormal directions, rows of very different sizes."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    places = torch.randperm(out, generator=generator)
    scale = torch.logspace(0, -3, out, dtype=torch.float64)[places]
    up = torch.linalg.qr(random(out, rank)).Q * scale[:, None]
    return Factors(random(rank, inner), up, random(out) if bias else None)


@given(
    out=st.integers(2, 24),
    inner=st.integers(1, 24),
    fraction=st.floats(0, 1),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_it_computes_what_the_factors_compute(
    out: int, inner: int, fraction: float, bias: bool, seed: int
) -> None:
    rank = max(1, round(fraction * min(out - 1, inner)))
    factors = random_factors(out, inner, rank, seed, bias=bias)
    layer = interpolate(factors)
    model = nn.ModuleDict({"layer": nn.Linear(inner, out, bias=bias, dtype=torch.float64)})
    replace_layers(model, {"layer": layer})
    x = torch.randn(3, 5, inner, generator=torch.Generator().manual_seed(seed)).double()
    expected = x @ factors.down.T @ factors.up.T + (0 if factors.bias is None else factors.bias)
    torch.testing.assert_close(model["layer"](x), expected, rtol=1e-8, atol=1e-9)


def test_it_holds_rank_squared_numbers_less_than_two_factors() -> None:
    out, inner, rank = 20, 30, 7
    layer = interpolate(random_factors(out, inner, rank, 0, bias=False))
    assert layer.basis.shape == (rank, inner)
    assert layer.rest.shape == (out - rank, rank)
    assert sorted(layer.order.tolist()) == list(range(out))
    stored = layer.basis.numel() + layer.rest.numel()
    assert stored == rank * (out + inner) - rank**2


def test_the_basis_are_rows_of_the_approximated_weight() -> None:
    factors = random_factors(12, 9, 4, 1, bias=False)
    layer = interpolate(factors)
    places = layer.order.argsort()[: layer.rank]
    torch.testing.assert_close(layer.basis, (factors.up @ factors.down)[places])


@pytest.mark.parametrize("rank", [1, 32, 256])
def test_no_output_is_a_wild_combination_of_others(rank: int) -> None:
    layer = interpolate(random_factors(512, 300, rank, 2, bias=False))
    assert layer.rest.abs().max() < 100


def test_the_precision_is_that_of_the_factors() -> None:
    factors = random_factors(12, 9, 4, 1, bias=True)
    assert factors.bias is not None
    single = Factors(factors.down.float(), factors.up.float(), factors.bias.float())
    layer = interpolate(single)
    assert layer.basis.dtype == layer.rest.dtype == torch.float32
    assert layer.order.dtype == torch.int32


def test_directions_beyond_the_numerical_rank_are_harmless() -> None:
    factors = random_factors(12, 10, 6, 0, bias=False)
    factors.up[:, 4:] = 0
    layer = interpolate(factors)
    dense = torch.cat((layer.basis, layer.rest @ layer.basis))[layer.order]
    torch.testing.assert_close(dense, factors.up @ factors.down)

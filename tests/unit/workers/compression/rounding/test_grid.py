from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.compression.candidates import Width
from workers.compression.rounding.grid import best_scales, group_size, nearest

BITS = st.sampled_from([2, 3, 4, 5, 6, 8])


@pytest.mark.parametrize(("into", "size"), [(576, 64), (1536, 64), (96, 32), (100, 100), (7, 7)])
def test_a_group_divides_the_inputs(into: int, size: int) -> None:
    assert group_size(into) == size


@given(bits=BITS, seed=st.integers(0, 100), dtype=st.sampled_from([torch.bfloat16, torch.float16]))
def test_scales_are_as_stored_and_no_worse_than_the_widest(
    bits: int, seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    width, weight = Width(bits), torch.randn(8, 128, generator=generator)
    importance = torch.rand(128, generator=generator)
    scales = best_scales(weight, importance, width, dtype)
    assert scales.dtype == dtype
    assert scales.shape == (8, 2)

    def error(tried: torch.Tensor) -> float:
        difference = nearest(weight, tried, width).dequantized() - weight
        return float((difference.square() * importance).sum())

    widest = (weight.reshape(8, 2, 64).abs().amax(-1) / width.highest).to(dtype)
    assert error(scales) <= error(widest) * (1 + 1e-4)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_largest_weight_takes_the_larger_end_of_the_codes(sign: int) -> None:
    weight = sign * torch.linspace(0, 4, 5).repeat(64)[None, :64]
    found = nearest(weight, best_scales(weight, torch.ones(64), Width(3), torch.bfloat16), Width(3))
    assert found.codes.min() == Width(3).lowest
    assert torch.equal(found.dequantized(), weight)


@given(bits=BITS, seed=st.integers(0, 100))
def test_codes_are_on_the_grid(bits: int, seed: int) -> None:
    width = Width(bits)
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
    found = nearest(weight, best_scales(weight, torch.ones(64), width, torch.bfloat16), width)
    assert found.codes.min() >= width.lowest
    assert found.codes.max() <= width.highest
    expected = found.codes.double() * found.scales.double().repeat_interleave(64, 1)
    assert torch.equal(found.dequantized(torch.bfloat16), expected.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_group_of_zeros_stays_zero(dtype: torch.dtype) -> None:
    weight = torch.zeros(2, 64)
    found = nearest(weight, best_scales(weight, torch.ones(64), Width(4), dtype), Width(4))
    assert found.scales.isfinite().all()
    assert torch.equal(found.dequantized(), weight)

"""Blocks of GGUF stand for exactly the weights that the codes stand for. Milliseconds each."""

from __future__ import annotations

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import dequantize

from workers.artifact.gguf_blocks import block_kind, blocks, fits_half, has_blocks, used_scales
from workers.compression.candidates import Width
from workers.compression.rounding.grid import RoundedWeight


def rounded(bits: int, groups: int, inputs: int = 128) -> RoundedWeight:
    """Random codes with both ends of their grid in each row, and scales of both signs."""
    generator, width = torch.Generator().manual_seed(bits), Width(bits)
    codes = torch.randint(width.lowest, width.highest + 1, (6, inputs), generator=generator)
    codes[:, 3], codes[:, -5] = width.lowest, width.highest
    scales = torch.randn(6, groups, generator=generator).bfloat16() / 100
    assert (scales < 0).any()
    assert (scales > 0).any()
    return RoundedWeight(width, codes.to(torch.int8), scales)


@pytest.mark.parametrize("groups", [2, 4])  # of 64 and of 32
@pytest.mark.parametrize(
    ("bits", "kind", "block_bytes"),
    [
        (2, Kind.Q4_0, 18),
        (3, Kind.Q4_0, 18),
        (4, Kind.Q4_0, 18),
        (5, Kind.Q5_0, 22),
        (6, Kind.Q8_0, 34),
        (8, Kind.Q8_0, 34),
    ],
)
def test_the_library_reads_the_same_weights(
    bits: int, kind: Kind, block_bytes: int, groups: int
) -> None:
    layer = rounded(bits, groups)
    data = blocks(layer)
    assert block_kind(layer.width) == kind
    assert data.shape == (6, 4 * block_bytes)
    spread = layer.scales.float().repeat_interleave(128 // groups, 1)
    wanted = layer.codes.float() * spread
    assert torch.equal(torch.from_numpy(dequantize(data, kind)), wanted)


def test_only_whole_blocks_will_do() -> None:
    assert has_blocks(128, torch.ones(6, 2))
    assert has_blocks(96, torch.ones(6, 3))
    assert not has_blocks(80, torch.ones(6, 1))
    assert not has_blocks(48, torch.ones(6, 1))


@pytest.mark.parametrize("scale", [1e-9, 1e6, 1.001])
def test_scales_that_float16_does_not_hold_are_found(scale: float) -> None:
    scales = torch.tensor([[0.5, scale]])
    assert not fits_half(scales)
    assert fits_half(scales[:, :1])


def test_the_scale_of_zeros_does_not_matter() -> None:
    layer = rounded(4, 2)
    layer.scales[2, 1] = torch.finfo(torch.bfloat16).tiny
    layer.codes[2, 64:] = 0
    assert not fits_half(layer.scales)
    assert fits_half(used_scales(layer))
    values = dequantize(blocks(layer), Kind.Q4_0)
    assert (values[2, 64:] == 0).all()
    assert (values[2, :64] != 0).any()

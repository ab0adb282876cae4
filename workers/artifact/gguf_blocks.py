"""Rounded weights as blocks of GGUF, which stand for exactly the same numbers.

A block is 32 codes of one output and their scale in float16. Its grid is ours: a code c stands for
c · scale, and the scale may be negative. So a group of 64 inputs becomes two blocks, and nothing is
rounded again. Widths for which GGUF has no such block take the next wider one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from torch import Tensor

from workers.compression.candidates import Width
from workers.compression.rounding.grid import RoundedWeight

BLOCK = 32

OFFSETS = {Kind.Q4_0: 8, Kind.Q5_0: 16}
"""What is added to codes before they are stored; those of Q8_0 are stored as they are."""


def block_kind(width: Width) -> Kind:
    """The narrowest kind of block that holds codes of this width."""
    if width.bits <= 4:
        return Kind.Q4_0
    return Kind.Q5_0 if width.bits == 5 else Kind.Q8_0


def has_blocks(inputs: int, scales: Tensor) -> bool:
    """Whether the groups of a layer with these scales, (out, groups), are whole blocks."""
    return inputs // scales.shape[1] % BLOCK == 0


def fits_half(scales: Tensor) -> bool:
    """Whether float16 holds these scales exactly."""
    return torch.equal(scales.half().to(scales.dtype), scales)


def used_scales(rounded: RoundedWeight) -> Tensor:
    """The scales, (out, groups); 0 where all codes are 0, since any scale does there."""
    out, groups = rounded.scales.shape
    zero = (rounded.codes == 0).view(out, groups, -1).all(-1)
    return rounded.scales.masked_fill(zero, 0)


def blocks(rounded: RoundedWeight) -> NDArray[Any]:
    """The blocks of a weight (out, in) whose used scales fit float16: (out, bytes) of uint8."""
    kind = block_kind(rounded.width)
    out, inputs = rounded.codes.shape
    codes = rounded.codes.numpy().reshape(out, -1, BLOCK)
    scales = used_scales(rounded).half().numpy().astype("<f2")
    scales = scales.repeat(inputs // scales.shape[1] // BLOCK, axis=1)  # (out, blocks)
    parts = [scales[..., None].view(np.uint8)]
    if kind == Kind.Q8_0:
        parts.append(codes.view(np.uint8))
    else:
        shifted = (codes + np.int8(OFFSETS[kind])).view(np.uint8)
        if kind == Kind.Q5_0:  # the fifth bits of all codes
            parts.append(np.packbits(shifted >> 4, axis=-1, bitorder="little"))
        first, second = np.split(shifted & 15, 2, axis=-1)
        parts.append(first | second << 4)
    return np.concatenate(parts, axis=-1).reshape(out, -1)

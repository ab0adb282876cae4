"""Weights as integers: every group of inputs of an output has one scale.

A grid is symmetric: a code c of b bits, −2^(b−1) ≤ c < 2^(b−1), stands for the weight c · scale, so
zero is always exact. Scales are rounded to the precision in which they are stored before anything
is measured, so codes and scales stand for exactly the weights whose error was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from workers.compression.candidates import Width
from workers.compression.shapes import LinearLayer

GROUP_SIZES = (64, 32)
"""The first of these that divides a layer's inputs is its group size; else a row is one group."""

SHAPE_BYTES = 16
"""A checkpoint stores a matrix's two sizes beside its codes."""

CLIPPINGS = 16
"""How many scales of each sign are tried for a group; each clips its largest weights more."""


@dataclass(frozen=True)
class RoundedWeight:
    """The weight of a linear layer in few bits."""

    width: Width
    codes: Tensor  # (out, in) int8
    scales: Tensor  # (out, in / group size), in the precision in which they are stored

    @property
    def nbytes(self) -> int:
        """The bytes in memory, where a code takes one whatever its width."""
        return self.codes.nbytes + self.scales.nbytes

    def to(self, device: torch.device) -> RoundedWeight:
        return RoundedWeight(self.width, self.codes.to(device), self.scales.to(device))

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (out, in) that the codes stand for; each product is rounded once."""
        return scaled(self.codes, self.scales.float()).to(dtype)


def scaled(codes: Tensor, scales: Tensor) -> Tensor:
    """The weights (out, in) that codes stand for with scales of (out, groups), in their dtype."""
    grouped = codes.to(scales.dtype).reshape(*scales.shape, -1)
    return (grouped * scales[..., None]).flatten(1)


def group_size(in_features: int) -> int:
    """How many inputs share a scale: a divisor of their number."""
    return next((size for size in GROUP_SIZES if in_features % size == 0), in_features)


def stored_bytes(layer: LinearLayer, width: Width, scale_bytes: int) -> int:
    """The bytes of a layer in a checkpoint: codes in words of 32 bits, scales, shape and bias."""
    words = layer.out_features * -(-layer.in_features * width.bits // 32)
    scales = layer.out_features * (layer.in_features // group_size(layer.in_features))
    bias = layer.out_features * layer.has_bias
    return 4 * words + scale_bytes * (scales + bias) + SHAPE_BYTES


def best_scales(
    weight: Tensor,
    importance: Tensor,
    width: Width,
    dtype: torch.dtype,
    size: int | None = None,
) -> Tensor:
    """For each group of a weight (out, in) the scale with the least error, (out, groups).

    The square of a weight's error counts in proportion to `importance`, (in,). The largest weight
    of a group takes either end of the codes, of which the negative one is larger, so a scale may be
    negative; and it is clipped by up to 1.2 / bits of its size. The result is in `dtype`, the
    precision in which scales are stored. A group has `size` inputs; None: those of `group_size`.
    """
    out, into = weight.shape
    grouped = weight.float().reshape(out, -1, size or group_size(into))  # (out, groups, size)
    cost = importance.float().view(1, grouped.shape[1], -1)
    largest = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True)).squeeze(-1)
    least = torch.finfo(dtype).tiny
    best = torch.full_like(largest, torch.inf)
    scales = torch.ones_like(largest, dtype=dtype)
    for end, clipping in product(
        (width.lowest, width.highest), torch.linspace(1, 1 - 1.2 / width.bits, CLIPPINGS).tolist()
    ):
        tried = (largest * clipping / end).to(dtype)
        tried = torch.where(tried.abs() < least, least, tried)
        each = tried.float()[..., None]
        codes = (grouped / each).round_().clamp_(width.lowest, width.highest)
        errors = codes.mul_(each).sub_(grouped).square_().mul_(cost).sum(-1)
        better = errors < best
        best = torch.where(better, errors, best)
        scales = torch.where(better, tried, scales)
    return scales


def nearest(weight: Tensor, scales: Tensor, width: Width) -> RoundedWeight:
    """Round every weight to the nearest point of its grid."""
    spread = scales.float().repeat_interleave(weight.shape[1] // scales.shape[1], 1)
    codes = (weight.float() / spread).round_().clamp_(width.lowest, width.highest)
    return RoundedWeight(width, codes.to(torch.int8), scales)

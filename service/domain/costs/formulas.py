"""What groups of layers and blocks cost: formulas on shapes.

Each follows what the engine does; a test compares it with the engine's own code or a tiny model.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

from service.domain.costs.shapes import Block, Group, Linear

MOMENTS, MAGNITUDES, SQUARES = "moments", "magnitudes", "gradient squares"
GRADIENT_MOMENTS, ROW_FISHER = "gradient moments", "row Fisher"
OBSERVED: dict[str, frozenset[str]] = {
    "svd": frozenset(),
    "fwsvd": frozenset({ROW_FISHER}),
    "asvd": frozenset({MAGNITUDES}),
    "svd-llm": frozenset({MOMENTS}),
    "afm": frozenset({MOMENTS}),
    "impact": frozenset({MOMENTS, SQUARES}),
    "impact-kron": frozenset({MOMENTS, SQUARES, GRADIENT_MOMENTS}),
}
"""The statistics that each method needs, as in `workers.compression.metrics`."""
GRADIENTS = frozenset({SQUARES, GRADIENT_MOMENTS, ROW_FISHER})
CENTRED = frozenset({"afm", "impact", "impact-kron"})

GRAM_BLOCK = 192
GROUP_SIZES = (64, 32)
SHAPE_BYTES = 16


def statistics_numbers(group: Group, method: str, widths: Sequence[int] = ()) -> int:
    """How many numbers the statistics of one copy of a group have.

    For integers of some `widths` the moments of both sides are kept in full.
    """
    outputs, observed = [layer.outputs for layer in group.layers], OBSERVED[method]
    sides = outputs if group.keeps_outputs and not widths else [group.inputs]
    gradients = outputs if widths else [layer.smaller_side for layer in group.layers]
    numbers = {
        MOMENTS: sum(side * side + side for side in sides),
        MAGNITUDES: group.inputs,
        SQUARES: sum(outputs),
        GRADIENT_MOMENTS: sum(side**2 for side in gradients),
        ROW_FISHER: sum(outputs),
    }
    return sum(numbers[each] for each in observed)


def statistics_operations(group: Group, method: str, widths: Sequence[int] = ()) -> tuple[int, int]:
    """For a token that reaches the group: operations in the model's precision, and in float32.

    Moments multiply a little more than half of a symmetric product. Where a layer's input is its
    smaller side, its gradient is multiplied by the weight first, unless integers are wanted.
    """
    outputs, observed = [layer.outputs for layer in group.layers], OBSERVED[method]
    sided = single = 0
    if MOMENTS in observed:
        of_outputs = group.keeps_outputs and not widths
        single += sum(map(gram_operations, outputs if of_outputs else [group.inputs]))
    if GRADIENT_MOMENTS in observed and widths:
        single += sum(map(gram_operations, outputs))
    elif GRADIENT_MOMENTS in observed:
        single += sum(gram_operations(layer.smaller_side) for layer in group.layers)
        sided += sum(2 * layer.weights for layer in group.layers if layer.outputs > layer.inputs)
    if ROW_FISHER in observed:
        single += 2 * group.weights
    return sided, single


def solve_operations(group: Group) -> tuple[int, int]:
    """Of decompositions and of products; their sum is `InputGroup.solve_operations`."""
    root = 0 if group.keeps_outputs else group.inputs**3
    decompositions = root + sum(layer.smaller_side**3 for layer in group.layers)
    return decompositions, sum(layer.outputs * layer.inputs**2 for layer in group.layers)


def rounding_operations(group: Group, widths: Sequence[int]) -> int:
    """Of the feedback along both sides, and of the prices, for every width."""
    return sum(
        6 * len(widths) * layer.weights * (layer.outputs + layer.inputs) for layer in group.layers
    )


def rounded_bytes(layer: Linear, widths: Sequence[int], number_bytes: int) -> int:
    """Of a layer's codes and scales, in the host's memory and in a checkpoint."""
    scales = layer.outputs * layer.inputs // group_size(layer.inputs)
    return len(widths) * (layer.weights + scales * number_bytes + 8)


def group_size(inputs: int) -> int:
    """How many inputs of a layer share a scale."""
    return next((size for size in GROUP_SIZES if inputs % size == 0), inputs)


def rank_cost(layer: Linear, rank: int, method: str) -> int:
    """The parameters of a layer of this rank, with the order of its outputs and its bias."""
    fixed = layer.outputs * (1 + (layer.bias or method in CENTRED))
    return fixed + rank * (layer.outputs + layer.inputs - rank)


def largest_rank(layer: Linear, method: str) -> int:
    """The first rank that saves nothing; 1 if none does."""
    ranks = range(1, layer.smaller_side + 1)
    return max(1, bisect_left(ranks, layer.parameters, key=lambda r: rank_cost(layer, r, method)))


def stored_bytes(layer: Linear, bits: int, number_bytes: int) -> int:
    """Of a layer as integers in an artifact: codes in words of 32 bits, scales, shape and bias."""
    words = layer.outputs * -(-layer.inputs * bits // 32)
    scales = layer.outputs * (layer.inputs // group_size(layer.inputs))
    return 4 * words + number_bytes * (scales + layer.outputs * layer.bias) + SHAPE_BYTES


def solution_bytes(layer: Linear, method: str, weight_bytes: int) -> int:
    """Of a solved layer, in the host's memory and in a checkpoint, without its integers."""
    side, centred = layer.smaller_side, method in CENTRED
    rank = largest_rank(layer, method)
    directions = side * rank * (max(4, weight_bytes) if layer.outputs <= layer.inputs else 8)
    moment = side * side if GRADIENT_MOMENTS in OBSERVED[method] else 0
    return directions + 8 * (layer.outputs + moment + side + (layer.outputs + rank) * centred)


def held(blocks: int, stride: int) -> int:
    """The boundaries that are kept at once, as `workers.sweeps.boundaries.held`."""
    return -(-blocks // stride) + stride


def stride(blocks: int, boundary_bytes: float, capacity_bytes: float) -> int:
    """How many blocks apart boundaries are kept; if none fits, the least memory."""
    strides = range(1, blocks + 1)
    fitting = (s for s in strides if held(blocks, s) * boundary_bytes <= capacity_bytes)
    return next(fitting, min(strides, key=lambda s: held(blocks, s)))


def recomputed(blocks: int, stride: int) -> int:
    """The blocks that a backward sweep goes through once more, for boundaries not kept."""
    return (-(-blocks // stride) - 1) * (stride - 1)


def forward_operations(block: Block, length: int) -> int:
    """Of a token in a sequence of this length; attention is counted without a mask."""
    return 2 * (_weights(block) + block.router) + _attention(block, length)


def backward_operations(block: Block, length: int) -> int:
    """Of a token: gradients of inputs only. Fused attention computes its scores once more."""
    return 2 * (_weights(block) + block.router) + 5 * _attention(block, length) // 2


@lru_cache
def block_statistics(block: Block, method: str, widths: Sequence[int] = ()) -> int:
    """How many numbers the statistics of a block have."""
    return sum(g.copies * statistics_numbers(g, method, widths) for g in block.groups)


@lru_cache
def gram_operations(size: int) -> int:
    """The operations of one row of `workers.compression.statistics._gram`."""
    starts = range(0, size, GRAM_BLOCK)
    return sum(2 * min(GRAM_BLOCK, size - start) * (size - start) for start in starts)


def _weights(block: Block) -> int:
    """The weights that a token is multiplied with."""
    return sum(group.active * group.weights for group in block.groups)


def _attention(block: Block, length: int) -> int:
    return 2 * length * block.heads * (block.query_width + block.value_width)

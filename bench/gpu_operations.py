"""Counts the operations that the steps of a compression need: pure functions.

A multiplication and its addition are two operations. Only products of matrices are counted, and
each moment counts as half a product, because it is symmetric.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.gpu_model import Shape
from workers.compression.shapes import InputGroup, LinearLayer


def forward(shape: Shape, groups: Sequence[InputGroup], tokens: int) -> float:
    """One forward pass of a block."""
    return 2.0 * tokens * _parameters(groups) + _attention(shape, tokens)


def backward(shape: Shape, groups: Sequence[InputGroup], tokens: int) -> float:
    """A forward pass, the gradients of the inputs without those of the weights, and the moments."""
    gradients = 2.0 * tokens * _parameters(groups) + 2 * _attention(shape, tokens)
    return forward(shape, groups, tokens) + gradients + moments(groups, tokens)


def moments(groups: Sequence[InputGroup], tokens: int) -> float:
    """The statistics of impact-kron."""
    return float(tokens * sum(_moments_per_token(group) for group in groups))


def head(shape: Shape, tokens: int) -> float:
    """The logits, and the gradient of the hidden state."""
    return 4.0 * tokens * shape.vocabulary * shape.hidden


def solving(group: InputGroup) -> float:
    """Roots, eigenproblems and the products around them, roughly."""
    return 2.0 * group.solve_operations


def truncating(layer: LinearLayer, rank: int) -> float:
    """Both factors, and their interpolative form, roughly."""
    sides = layer.out_features + layer.in_features
    return 2.0 * (layer.parameters * (layer.smaller_side + rank) + rank**2 * sides)


def _parameters(groups: Sequence[InputGroup]) -> int:
    return sum(layer.parameters for group in groups for layer in group.layers)


def _attention(shape: Shape, tokens: int) -> float:
    """Scores and their sums of values for the half of all pairs that a causal mask leaves."""
    return 2.0 * tokens * shape.length * shape.hidden


def _moments_per_token(group: InputGroup) -> int:
    kept = [layer.out_features for layer in group.layers if group.keeps_outputs]
    activations = sum(size**2 for size in kept or [group.in_features])
    gradients = sum(
        layer.smaller_side**2 + (0 if layer.output_is_smaller else 2 * layer.parameters)
        for layer in group.layers
    )
    return activations + gradients

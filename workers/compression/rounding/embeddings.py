"""The embedding and the output layer as integers of 8 bits, with a scale for each token.

Tied weights are one matrix, are rounded once and stay tied. No price is known for them: each row is
rounded to the nearest points of its own grid, every column counting the same. They are rounded, and
multiplied out, in slices of rows, so beside a matrix and its codes the work takes little memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workers.compression.candidates import Width
from workers.compression.errors import UnsupportedLayer
from workers.compression.rounding.grid import RoundedWeight, best_scales, nearest
from workers.compression.shapes import VocabularyMatrix

WIDTH = Width(8)

SLICE_BYTES = 4 << 20
"""How much of a matrix, in float32, is rounded or multiplied out at a time: it fits in a cache."""


def vocabulary_matrices(model: Any) -> tuple[VocabularyMatrix, ...]:
    """The weights of a model's embedding and output layer, a tied one once.

    The model is as its class makes it; its weights may be on the meta device, its buffers have
    their values. Raises UnsupportedLayer, which names the module that cannot be rounded.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    wanted = (
        (model.get_input_embeddings(), nn.Embedding),
        (model.get_output_embeddings(), nn.Linear),
    )
    tied: Mapping[str, str] = model.all_tied_weights_keys  # the weight that is stored, by tied one
    stored: dict[str, VocabularyMatrix] = {}
    for module, kind in wanted:
        path = paths.get(id(module), type(model).__name__)
        if not isinstance(module, kind):
            found = type(module).__name__
            raise UnsupportedLayer(f"{path} is a {found}, not an nn.{kind.__name__}")
        name = tied.get(f"{path}.weight", f"{path}.weight")
        sharing = (name, *(target for target, source in tied.items() if source == name))
        modules = tuple(each.removesuffix(".weight") for each in sharing)
        constants = tuple(each for path in modules for each in _constants(model, path))
        rows, columns = module.weight.shape
        stored[name] = VocabularyMatrix(modules, rows, columns, constants)
    return tuple(stored.values())


def _constants(model: nn.Module, path: str) -> Iterator[tuple[str, float]]:
    """What compressed-tensors makes parameters of a module, so that a checkpoint must have it."""
    for name, buffer in model.get_submodule(path).named_buffers(prefix=path):
        if isinstance(buffer, nn.Buffer) and not buffer.persistent:
            if buffer.numel() != 1:
                raise UnsupportedLayer(f"{path} computes with '{name}', which is not one number")
            yield name, float(buffer)


def rounded_rows(weight: Tensor, dtype: torch.dtype) -> RoundedWeight:
    """A matrix (rows, columns) as integers; `dtype` is that of the scales, (rows, 1)."""
    columns = weight.shape[1]
    everything = weight.new_ones(columns)
    pieces = [
        nearest(rows, best_scales(rows, everything, WIDTH, dtype, columns), WIDTH)
        for rows in torch.split(weight, _rows_at_once(columns))
    ]
    return RoundedWeight(
        WIDTH,
        torch.cat([piece.codes for piece in pieces]),
        torch.cat([piece.scales for piece in pieces]),
    )


def multiplied_out(rounded: RoundedWeight, dtype: torch.dtype) -> Tensor:
    """The matrix that the integers stand for."""
    weight = torch.empty_like(rounded.codes, dtype=dtype)
    count = _rows_at_once(weight.shape[1])
    parts = (torch.split(each, count) for each in (weight, rounded.codes, rounded.scales))
    for rows, codes, scales in zip(*parts, strict=True):
        rows.copy_(RoundedWeight(rounded.width, codes, scales).dequantized(dtype))
    return weight


def _rows_at_once(columns: int) -> int:
    return max(1, SLICE_BYTES // (4 * columns))


@contextmanager
def in_place(model: Any, matrices: Mapping[str, RoundedWeight]) -> Iterator[None]:
    """Have the named modules, and those that are tied to them, these weights for a while."""
    replaced: list[tuple[Any, Any]] = []
    try:
        for name, rounded in matrices.items():
            dense = model.get_submodule(name).weight
            numbers = multiplied_out(rounded.to(dense.device), dense.dtype)
            weight = nn.Parameter(numbers, requires_grad=False)
            for module in model.modules():
                if getattr(module, "weight", None) is dense:
                    replaced.append((module, dense))
                    module.weight = weight
        yield
    finally:
        for module, dense in replaced:
            module.weight = dense

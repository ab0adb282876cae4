"""Puts low-rank layers into a model in memory, to measure a size without writing it.

The model then computes the same as the artifact of that size, in the artifact's precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from workers.compression.checkpoint import replace_layers
from workers.compression.interpolation import Interpolation


class Substitution:
    """Replaces layers of a model repeatedly, and keeps the dense ones to restore them.

    `dtype` is the artifact's. Unless the source is stored in it throughout (`exact`), all weights
    of the model are rounded to it irreversibly.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, *, exact: bool) -> None:
        self.exact = exact
        self._model = model
        self._dtype = dtype
        self._dense: dict[str, nn.Module] = {}
        if not exact:
            round_weights(model, dtype)

    def put(self, layers: Mapping[str, Interpolation | None]) -> None:
        """Put in these layers, or the dense ones for None; the other layers do not change."""
        for name, layer in layers.items():
            if name in self._dense:
                self._model.set_submodule(name, self._dense.pop(name))
            if layer is not None:
                self._dense[name] = self._model.get_submodule(name)
                replace_layers(self._model, {name: _rounded(layer, self._dtype)})

    def undo(self) -> None:
        """Put all dense layers back."""
        self.put(dict.fromkeys(list(self._dense)))


def round_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Round every weight as if it came from a checkpoint in `dtype`, loaded by `load_model`.

    On a CPU the rounded weights are float32; on a GPU they stay in `dtype`.
    """
    for parameter in model.parameters():
        rounded = parameter.data.to(dtype)
        parameter.data = rounded.float() if rounded.device.type == "cpu" else rounded


def _rounded(layer: Interpolation, dtype: torch.dtype) -> Interpolation:
    bias: Tensor | None = None if layer.bias is None else layer.bias.to(dtype)
    return replace(layer, basis=layer.basis.to(dtype), rest=layer.rest.to(dtype), bias=bias)

"""The module of a layer in training, whatever its form."""

from __future__ import annotations

from workers.compression.recovery.factors import FactoredLinear
from workers.compression.recovery.scales import ScaledLinear
from workers.compression.recovery.training import RoundedLayer, TrainedLayer, TrainedLinear


def trainable(layer: TrainedLayer) -> TrainedLinear:
    """A module that computes what the layer does, with the parameters that are trained."""
    return ScaledLinear(layer) if isinstance(layer, RoundedLayer) else FactoredLinear(layer)

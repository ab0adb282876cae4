"""The shapes of a model's layers, and which of them share an input or a weight: plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearLayer:
    """The shape of one compressible layer; `name` is its path in the model."""

    name: str
    out_features: int
    in_features: int
    has_bias: bool

    @property
    def parameters(self) -> int:
        """The number of parameters of the dense layer, including its bias."""
        return self.out_features * (self.in_features + self.has_bias)

    @property
    def smaller_side(self) -> int:
        """The layer's full rank."""
        return min(self.out_features, self.in_features)

    @property
    def output_is_smaller(self) -> bool:
        """Whether the layer is solved, and its gradients accumulated, on the output side."""
        return self.out_features <= self.in_features


@dataclass(frozen=True)
class VocabularyMatrix:
    """The weight of the embedding, of the output layer, or of both if they are tied."""

    modules: tuple[str, ...]  # all that share it
    rows: int  # entries of the vocabulary
    columns: int
    constants: tuple[tuple[str, float], ...] = ()
    """Numbers of the modules that no checkpoint has, by their names in the model: what Gemma
    multiplies its embedding by."""

    @property
    def name(self) -> str:
        """The module under whose name a checkpoint has it."""
        return self.modules[0]

    def stored_bytes(self, scale_bytes: int) -> int:
        """The bytes in a checkpoint with 8 bits: codes once; scales and constants by module."""
        scales = len(self.modules) * self.rows * scale_bytes
        return self.rows * self.columns + scales + 4 * len(self.constants)


@dataclass(frozen=True)
class InputGroup:
    """Layers with the same input (q, k and v; gate and up), in calling order.

    They share one second moment, so a group is the unit of statistics and of solving.
    """

    layers: tuple[LinearLayer, ...]

    @property
    def name(self) -> str:
        return self.layers[0].name

    @property
    def in_features(self) -> int:
        return self.layers[0].in_features

    @property
    def keeps_outputs(self) -> bool:
        """Whether the outputs' second moments are smaller than the input's (down_proj)."""
        return sum(layer.out_features**2 for layer in self.layers) < self.in_features**2

    @property
    def solve_operations(self) -> int:
        """The approximate number of floating-point operations to solve the group."""
        root = 0 if self.keeps_outputs else self.in_features**3
        return root + sum(
            min(layer.out_features, layer.in_features) ** 3
            + layer.out_features * layer.in_features**2
            for layer in self.layers
        )

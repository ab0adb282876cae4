"""The module that takes a linear layer's place.

The class stands alone on torch: its source is copied into every artifact's modelling file.
"""

from __future__ import annotations

from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """y = up(down(x)): a linear layer whose weight is a product of rank `rank`."""

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.down = nn.Linear(in_features, rank, bias=False)
        self.up = nn.Linear(rank, out_features, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.up(self.down(x))
        return y

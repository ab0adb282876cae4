"""The module that replaces a linear layer.

The class depends only on torch: its source is copied into every artifact's modelling file.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """A linear layer of rank `rank`: `rank` outputs, and the others as combinations of them."""

    order: Tensor

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.basis = nn.Linear(in_features, rank, bias=False)
        self.rest = nn.Linear(rank, out_features - rank, bias=False)
        self.register_buffer("order", torch.arange(out_features, dtype=torch.int32))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        z = self.basis(x)
        y = torch.cat((z, self.rest(z)), dim=-1)
        order = self.order.long().expand_as(y)
        if torch.is_grad_enabled() or y.element_size() != 2:
            y = y.gather(-1, order)
        else:  # as integers, which a CPU gathers faster; they have no derivatives
            y = y.view(torch.int16).gather(-1, order).view(y.dtype)
        return y if self.bias is None else y.add_(self.bias.to(y.dtype))

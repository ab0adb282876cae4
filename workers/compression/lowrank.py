"""The module that replaces a linear layer.

Its source is copied into every artifact's modelling file: it depends only on torch and two numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from workers.compression.candidates import SECOND_PRODUCT

SMALL_WEIGHT = 1 << 21
"""Parameters of the largest dense weight that is kept beside its factors: 4 MiB in 16 bits."""


def is_faster_dense(in_features: int, out_features: int, rank: int, joined: bool = False) -> bool:
    """Whether a layer of this rank is small, and takes less time as one product than as two.

    `joined` is whether the engine joins dense layers, so that low rank takes another product.
    """
    saved = (in_features - rank) * (out_features - rank)
    more = SECOND_PRODUCT * (1 + joined)
    return saved < more and in_features * out_features <= SMALL_WEIGHT


@torch.no_grad()
def multiplied_out(basis: Tensor, rest: Tensor, order: Tensor) -> Tensor:
    """The dense weight (out, in) of the factors; each number is rounded once."""
    wide = torch.promote_types(basis.dtype, torch.float32)
    with torch.autocast(basis.device.type, enabled=False):
        others = (rest.to(wide) @ basis.to(wide)).to(basis.dtype)
    return torch.cat((basis, others))[order.long()]


class LowRankLinear(nn.Module):
    """A linear layer of rank `rank`: `rank` outputs, and the others as combinations of them.

    For inference a layer that `is_faster_dense` is multiplied out at its first use. The product is
    no part of the layer's state, and is made anew after a change of the factors; as in autograd, a
    change in place through `data` goes unseen. Training and compiled graphs use the factors.
    """

    order: Tensor

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.basis = nn.Linear(in_features, rank, bias=False)
        self.rest = nn.Linear(rank, out_features - rank, bias=False)
        self.register_buffer("order", torch.arange(out_features, dtype=torch.int32))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self._is_faster_dense = is_faster_dense(in_features, out_features, rank)
        self._product: tuple[Tensor, tuple[int, ...], tuple[Tensor, ...]] | None = None

    def forward(self, x: Tensor) -> Tensor:
        dense = None if torch.compiler.is_compiling() else self._multiplied_out()
        y = self._by_factors(x) if dense is None else nn.functional.linear(x, dense)
        return y if self.bias is None else y.add_(self.bias.to(y.dtype))

    def _by_factors(self, x: Tensor) -> Tensor:
        z = self.basis(x)
        y = torch.cat((z, self.rest(z)), dim=-1)
        order = self.order.long().expand_as(y)
        if torch.is_grad_enabled() or y.element_size() != 2:
            return y.gather(-1, order)
        # As integers, which a CPU gathers faster; they have no derivatives.
        return y.view(torch.int16).gather(-1, order).view(y.dtype)

    def _multiplied_out(self) -> Tensor | None:
        """The dense weight if it is what to use, else None. This must take microseconds."""
        if not self._is_faster_dense:
            return None
        modules: Any = self._modules  # `self.basis.weight` would take longer than all else here
        basis = modules["basis"]._parameters.get("weight")
        rest = modules["rest"]._parameters.get("weight")
        if (
            self.training
            or torch.is_grad_enabled()
            or not (type(basis) is type(rest) is nn.Parameter)  # but quantized, adapted, sharded
            or basis.is_inference()  # so it has no version
            or rest.is_inference()
        ):
            self._product = None
            return None
        state = basis.data_ptr(), basis._version, rest.data_ptr(), rest._version
        product = self._product
        if product is None or product[1] != state:
            if not (basis.data_ptr() and rest.data_ptr()):  # they are elsewhere, such as on a disk
                return None
            # With the factors it keeps their addresses, which no other tensor can have meanwhile.
            kept = basis.detach(), rest.detach()
            product = self._product = multiplied_out(*kept, self.order), state, kept
        return product[0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_product": None}

"""Tensors as the bytes of a file."""

from __future__ import annotations

from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file of these tensors, which may be on any device."""
    return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})

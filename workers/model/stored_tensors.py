"""The tensors of a checkpoint's safetensors files, each read on demand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from workers.model.weight_files import weight_files


class StoredTensors:
    """The tensors of a folder, by their stored names."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Any] = {}
        for path in weight_files(folder):
            # Files are not mapped: pages that were read would count as this process's memory.
            file: Any = safe_open(path, framework="pt", backend="pread")
            self._files |= dict.fromkeys(file.keys(), file)

    def __iter__(self) -> Iterator[str]:
        """The names of all tensors, in the order of the files."""
        return iter(self._files)

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def shape(self, key: str) -> Tensor:
        """A tensor of the same shape that takes no memory."""
        return torch.empty(self._files[key].get_slice(key).get_shape(), device="meta")

    def read(self, key: str) -> Tensor:
        tensor: Tensor = self._files[key].get_tensor(key)
        return tensor

"""The tensors of a checkpoint's safetensors files, each read when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from workers.model.weight_files import weight_files


class StoredTensors:
    """The tensors of a folder, by the names they are stored under."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Any] = {}
        for path in weight_files(folder):
            file: Any = safe_open(path, framework="pt")  # maps the file: nothing is read yet
            self._files |= dict.fromkeys(file.keys(), file)

    def keys(self) -> tuple[str, ...]:
        """In the order of the files."""
        return tuple(self._files)

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def shape(self, key: str) -> Tensor:
        """A tensor of the same shape without memory."""
        return torch.empty(self._files[key].get_slice(key).get_shape(), device="meta")

    def read(self, key: str) -> Tensor:
        tensor: Tensor = self._files[key].get_tensor(key)
        return tensor

"""Writes a safetensors file from a stream, holding one tensor at a time.

The library writes a file only from tensors that are all in memory: the header comes first, and wide
numbers come before narrow ones, so that each tensor is aligned. Here the tensors first go to a
scratch file, and are copied into their order when the header is known.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from tempfile import TemporaryFile

import torch
from safetensors import TensorSpec
from torch import Tensor

ALIGNMENT = 8


@dataclass(frozen=True)
class WrittenTensor:
    """One tensor of a file."""

    name: str
    dtype: str  # as safetensors names it
    width: int  # bytes of one number
    shape: tuple[int, ...]
    start: int  # its position in the scratch file

    @property
    def numbers(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numbers * self.width


def write_safetensors(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> list[WrittenTensor]:
    """Write the tensors, which must have distinct names; return what the file holds, in order.

    The same tensors give the same bytes. The scratch file takes as much of the disk as the file.
    """
    written = []
    with TemporaryFile(dir=path.parent) as scratch, path.open("wb") as file:
        for name, tensor in tensors:
            written.append(_described(name, tensor, scratch.tell()))
            numbers = tensor.detach().cpu().contiguous()
            scratch.write(numbers.reshape(-1).view(torch.uint8).numpy().data)
            del tensor, numbers  # before the next one is read
        written.sort(key=lambda each: (-each.width, each.name))
        file.write(_header(written))
        scratch.flush()
        file.flush()
        for each in written:
            _copy(scratch.fileno(), file.fileno(), each.start, each.nbytes)
    return written


def _described(name: str, tensor: Tensor, start: int) -> WrittenTensor:
    code = str(tensor.dtype).removeprefix("torch.")
    spec = TensorSpec(dtype=code, shape=tensor.shape, data_ptr=0, data_len=tensor.nbytes)
    return WrittenTensor(name, spec.dtype, tensor.itemsize, tuple(tensor.shape), start)


def _copy(source: int, target: int, start: int, nbytes: int) -> None:
    """Append a part of one open file to another, within the kernel."""
    while nbytes:
        copied = os.sendfile(target, source, start, nbytes)
        start, nbytes = start + copied, nbytes - copied


def _header(written: Sequence[WrittenTensor]) -> bytes:
    # One metadata key: the library orders several at random.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for each in written:
        start, end = end, end + each.nbytes
        header[each.name] = {
            "dtype": each.dtype,
            "shape": each.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(ALIGNMENT, "little") + text

"""The hidden states between the blocks, of all batches, within a budget of memory.

Boundary k is the input of block k, of every batch. Tensors go into memory while the budget allows
it, then into files. If a boundary of every block fits into neither, only every s-th is kept, and
the others of a segment are computed again from the one before: √L of them need memory for one more
forward pass (Chen et al., arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.compression.errors import BoundariesTooLarge
from workers.sweeps.copies import Copies, CopiesAtOnce, Copy

KEY = "hidden"


def stride(blocks: int, boundary_bytes: int, capacity_bytes: int) -> int:
    """The least s with which every s-th boundary and those of one segment fit into the capacity.

    Raises BoundariesTooLarge if there is none.
    """
    for s in range(1, blocks + 1):
        if held(blocks, s) * boundary_bytes <= capacity_bytes:
            return s
    fewest = min(held(blocks, s) for s in range(1, blocks + 1))
    raise BoundariesTooLarge(
        f"the hidden states between {blocks} blocks need {fewest * boundary_bytes} bytes at least, "
        f"and there are {capacity_bytes}"
    )


def held(blocks: int, s: int) -> int:
    """How many boundaries are kept at once, beside the one that a pass writes."""
    return -(-blocks // s) + (s - 1) + 1


class Boundaries:
    """Tensors by key, each in the first tier with room for it, or else in a file of `folder`.

    A tier is a device, and how many bytes of its memory may be used.
    """

    def __init__(
        self, tiers: Mapping[torch.device, int], folder: Path, copies: Copies | None = None
    ) -> None:
        self._room = dict(tiers)
        self._folder = folder
        self._copies = copies or CopiesAtOnce()
        self._held: dict[Hashable, tuple[torch.device, int, Copy]] = {}  # with its bytes there
        self._ahead: dict[Hashable, Copy] = {}  # on its way to the device that computes
        self._files: dict[Hashable, Path] = {}
        self._written = 0

    def __contains__(self, key: Hashable) -> bool:
        return key in self._held or key in self._files

    def put(self, key: Hashable, tensor: Tensor) -> None:
        """Keep a tensor in place of the one with the same key."""
        self.drop(key)
        for device, room in self._room.items():
            needed = self._copies.kept_bytes(tensor, device)
            if needed <= room:
                self._room[device] -= needed
                self._held[key] = device, needed, self._copies.keep(tensor, device)
                return
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{self._written}.safetensors"
        self._written += 1
        save_file({KEY: tensor.contiguous()}, path)
        self._files[key] = path

    def get(self, key: Hashable, device: torch.device, following: Hashable | None = None) -> Tensor:
        """The tensor with this key, on a device; `following` comes next, if it is there.

        Raises KeyError.
        """
        if key not in self._held:
            return load_file(self._files[key])[KEY].to(device)
        wanted = self._ahead.pop(key, None) or self._copies.bring(self._held[key][-1], device)
        if following in self._held and following not in self._ahead:
            self._ahead[following] = self._copies.bring(self._held[following][-1], device)
        return wanted.join().to(device)

    def drop(self, key: Hashable) -> None:
        """Forget the tensor with this key, if there is one."""
        self._ahead.pop(key, None)
        if key in self._held:
            tier, taken, _ = self._held.pop(key)  # a tensor on "cuda" says that it is on "cuda:0"
            self._room[tier] += taken
        if path := self._files.pop(key, None):
            path.unlink()

    def clear(self) -> None:
        """Forget all tensors."""
        for key in [*self._held, *self._files]:
            self.drop(key)
        self._copies.release()

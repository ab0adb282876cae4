"""Copies of hidden states between a GPU and the host, beside the computation.

A copy from or to page-locked memory on a stream of its own takes nothing from the computation; one
to plain memory stops it. **This has not been run on a GPU yet:** the tests run it against a
stand-in for the stream, and everything else on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Copy(Protocol):
    """A tensor that is on its way."""

    def join(self) -> Tensor:
        """The tensor. The caller's stream, or for the host's memory its thread, waits for it."""


class Copies(Protocol):
    """Starts copies; one that starts later also ends later."""

    def keep(self, tensor: Tensor, tier: torch.device) -> Copy:
        """A tensor that the caller's stream has computed, to a tier."""

    def bring(self, kept: Copy, device: torch.device) -> Copy:
        """What is kept, to the device that computes; it may still be on its way to its tier."""

    def kept_bytes(self, tensor: Tensor, tier: torch.device) -> int:
        """The bytes that the tensor takes of a tier."""

    def release(self) -> None:
        """Nothing is kept any more."""


@dataclass(frozen=True)
class _Arrived:
    tensor: Tensor

    def join(self) -> Tensor:
        return self.tensor


class CopiesAtOnce:
    """Waits for each copy; on a CPU there is none."""

    def keep(self, tensor: Tensor, tier: torch.device) -> Copy:
        return _Arrived(tensor.to(tier))

    def bring(self, kept: Copy, device: torch.device) -> Copy:
        return _Arrived(kept.join().to(device))

    def kept_bytes(self, tensor: Tensor, tier: torch.device) -> int:  # noqa: ARG002
        return tensor.nbytes

    def release(self) -> None:
        pass


@dataclass(frozen=True)
class _OnStream:
    tensor: Tensor
    arrived: torch.cuda.Event

    def join(self) -> Tensor:
        if self.tensor.is_cuda:
            current = torch.cuda.current_stream(self.tensor.device)
            current.wait_event(self.arrived)
            # Its memory belongs to the stream of copies, which may not have it back before.
            self.tensor.record_stream(current)
        else:
            self.arrived.synchronize()
        return self.tensor


class CopiesBeside:
    """Copies between a GPU and page-locked memory, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def keep(self, tensor: Tensor, tier: torch.device) -> Copy:
        return self._copy(tensor, tier)

    def bring(self, kept: Copy, device: torch.device) -> Copy:
        if not isinstance(kept, _OnStream):  # as it was computed, in the GPU's memory
            return self._copy(kept.join(), device)
        # No need to wait until it has reached its tier: the stream keeps the order.
        return kept if kept.tensor.device.type == device.type else self._copy(kept.tensor, device)

    def kept_bytes(self, tensor: Tensor, tier: torch.device) -> int:
        """Torch rounds page-locked memory up to a power of two."""
        return tensor.nbytes if tier.type == "cuda" else 1 << max(0, tensor.nbytes - 1).bit_length()

    def release(self) -> None:
        if empty := getattr(torch.accelerator, "empty_host_cache", None):  # since torch 2.11
            empty()

    def _copy(self, tensor: Tensor, target: torch.device) -> Copy:
        if tensor.is_cuda and target.type == "cuda":
            return _Arrived(tensor.to(target))
        tensor = tensor.detach()
        if tensor.is_cuda:
            self._stream.wait_stream(torch.cuda.current_stream(tensor.device))
            tensor.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            if target.type == "cuda":
                copied = tensor.to(target, non_blocking=True)
            else:
                copied = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                copied.copy_(tensor, non_blocking=True)
        return _OnStream(copied, self._stream.record_event())


def copies(device: torch.device) -> Copies:
    """The copies for a device that computes."""
    return CopiesBeside(device) if device.type == "cuda" else CopiesAtOnce()

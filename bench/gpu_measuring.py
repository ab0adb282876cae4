"""Measures steps on a GPU or a CPU, and what the device can do at best; needs torch alone."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

REPETITIONS = 10
KIB = 1024


@dataclass
class Step:
    """The costs of a step of which a part may have been measured."""

    factor: float
    """How often the measured part occurs in the whole; above 1 its costs are extrapolated."""

    measured_seconds: float = 0.0
    operations: float = 0.0  # of the measured part; a product and its sum are two
    copied_bytes: float = 0.0  # of the measured part
    device_peak_bytes: int = 0
    host_peak_bytes: int = 0
    """The largest resident memory of the process until the end of the step."""

    @property
    def seconds(self) -> float:
        return self.measured_seconds * self.factor


class Stopwatch:
    """Adds up the costs of steps, which may be interrupted and continued."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.steps: dict[str, Step] = {}

    @contextmanager
    def step(
        self, name: str, factor: float = 1.0, *, operations: float = 0.0, copied_bytes: float = 0.0
    ) -> Iterator[None]:
        """Measure the block as a part of a step."""
        step = self.steps.setdefault(name, Step(factor))
        on_gpu = self._device.type == "cuda"
        synchronise(self._device)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self._device)
        start = time.perf_counter()
        yield
        synchronise(self._device)
        step.measured_seconds += time.perf_counter() - start
        step.operations += operations
        step.copied_bytes += copied_bytes
        if on_gpu:
            peak = torch.cuda.max_memory_allocated(self._device)
            step.device_peak_bytes = max(step.device_peak_bytes, peak)
        step.host_peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB


@dataclass(frozen=True)
class Ceilings:
    """The best of several repetitions on this device."""

    products: float  # operations per second, in the model's precision
    products_float64: float
    copies: float  # bytes per second, from the host to the device


def measure_ceilings(device: torch.device, dtype: torch.dtype) -> Ceilings:
    """Multiply large square matrices, and copy pinned memory to the device."""
    on_gpu = device.type == "cuda"
    size = 8192 if on_gpu else 512
    host = torch.empty((1 << 30) if on_gpu else (1 << 24), dtype=torch.uint8, pin_memory=on_gpu)
    target = torch.empty_like(host, device=device)
    copying = _best(lambda: target.copy_(host, non_blocking=True), device)
    return Ceilings(
        _products(size, dtype, device),
        _products(size // 2, torch.float64, device),
        host.nbytes / copying,
    )


def _products(size: int, dtype: torch.dtype, device: torch.device) -> float:
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    result = torch.empty_like(one)
    return 2.0 * size**3 / _best(lambda: torch.mm(one, other, out=result), device)


def _best(work: Callable[[], Tensor], device: torch.device) -> float:
    """The least seconds of several repetitions, after one to warm up."""
    seconds = []
    for _ in range(1 + REPETITIONS):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

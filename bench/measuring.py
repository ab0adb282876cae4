"""Measures the time and the peak memory of a step, and describes the machine."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil
import torch

SAMPLING_SECONDS = 0.002


@dataclass(frozen=True)
class Cost:
    """The time and the memory of a step."""

    seconds: float
    memory_before: int  # bytes held when the step began
    memory_peak: int  # the largest number of bytes held during the step


class Meter:
    """A context manager that measures its block.

    Memory on a CPU is the resident memory of this process, sampled every `SAMPLING_SECONDS`; it
    includes what torch and earlier steps hold. On a GPU it is the memory that torch has allocated.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cost: Cost | None = None

    @property
    def cost(self) -> Cost:
        if self._cost is None:
            raise RuntimeError("nothing has been measured yet")
        return self._cost

    def __enter__(self) -> Meter:
        synchronise(self._device)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        self._sampler = _Sampler()
        self._before = self._held()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        synchronise(self._device)
        seconds = time.perf_counter() - self._start
        resident = self._sampler.stop()
        on_gpu = self._device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self._device) if on_gpu else resident
        self._cost = Cost(seconds, self._before, peak)

    def _held(self) -> int:
        if self._device.type == "cuda":
            return int(torch.cuda.memory_allocated(self._device))
        return resident_memory()


class _Sampler:
    """Samples the largest resident memory of this process in a thread."""

    def __init__(self) -> None:
        self._peak = resident_memory()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._stopping.set()
        self._thread.join()
        return max(self._peak, resident_memory())

    def _watch(self) -> None:
        while not self._stopping.wait(SAMPLING_SECONDS):
            self._peak = max(self._peak, resident_memory())


def resident_memory() -> int:
    """The resident memory of this process in bytes."""
    return int(psutil.Process().memory_info().rss)


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def added_to(seconds: list[float], device: torch.device) -> Iterator[None]:
    """Append the time that the block takes to `seconds`."""
    synchronise(device)
    start = time.perf_counter()
    yield
    synchronise(device)
    seconds.append(time.perf_counter() - start)


def machine(device: torch.device) -> dict[str, str]:
    """The properties of the machine that affect the numbers."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()

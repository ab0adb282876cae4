"""How much room a worker has for hidden states, beside the other workers of its machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import torch

from service.settings import Settings
from workers.sweeps.boundaries import Boundaries
from workers.sweeps.copies import copies

SHARE_FOR_HIDDEN_STATES = 0.25
"""The part of the free memory for hidden states, unless a setting says otherwise; the same part is
for solved layers."""

SHARE_OF_GPU = 0.25
"""The part of a GPU's free memory for hidden states."""

SHARE_OF_DISK = 0.5
"""The part of the free disk for hidden states, unless a setting says otherwise."""

SHARE_FOR_A_MODEL = 0.8
"""The part of the free memory for a whole model, which is loaded when nothing else is kept."""


def worker_memory_bytes(device: torch.device, settings: Settings) -> int:
    """The host's memory for hidden states; there is as much again for solved layers."""
    configured = settings.worker_memory_bytes
    return _of_free_memory(SHARE_FOR_HIDDEN_STATES, device) if configured is None else configured


def boundary_store(
    device: torch.device, settings: Settings, folder: Path
) -> tuple[Boundaries, int]:
    """A store for hidden states, with its files in `folder`, and how many bytes it can hold.

    It uses the memory of the device, then that of the host, then files.
    """
    files = settings.worker_disk_bytes
    if files is None:
        folder.mkdir(parents=True, exist_ok=True)
        files = int(shutil.disk_usage(folder).free * SHARE_OF_DISK * _share_of_machine(device))
    tiers = {torch.device("cpu"): worker_memory_bytes(device, settings)}
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        tiers = {device: int(free * SHARE_OF_GPU), **tiers}
    return Boundaries(tiers, folder, copies(device)), sum(tiers.values()) + files


def model_memory_bytes(device: torch.device, settings: Settings) -> int:
    """How much of the host's memory a worker may take for a whole model."""
    configured = settings.model_memory_bytes
    return _of_free_memory(SHARE_FOR_A_MODEL, device) if configured is None else configured


def machine_sizes(device: torch.device, settings: Settings) -> tuple[int, int, int | None]:
    """The bytes of this machine's memory, of the disk with the scratch folder, and of the GPU."""
    settings.scratch_dir.mkdir(parents=True, exist_ok=True)
    gpu = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None
    disk = shutil.disk_usage(settings.scratch_dir).total
    return psutil.virtual_memory().total, disk, gpu


def _of_free_memory(share: float, device: torch.device) -> int:
    return int(psutil.virtual_memory().available * share * _share_of_machine(device))


def _share_of_machine(device: torch.device) -> float:
    """A worker's share of its machine, if the same workers fill it."""
    if device.type == "cuda":
        return 1 / max(1, torch.cuda.device_count())
    return min(1.0, torch.get_num_threads() / (psutil.cpu_count() or 1))

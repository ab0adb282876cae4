"""What a worker answers its driver: plain data, which a driver reads without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from workers.actors.versions import Versions
from workers.compression.candidates import LayerCandidates
from workers.compression.shapes import InputGroup, LinearLayer
from workers.resumption.checkpoints import Refusal


@dataclass(frozen=True)
class WorkerPlace:
    """Where a worker runs and on what."""

    worker: int
    host: str
    pid: int
    device: str
    kind: str  # of the device: equal kinds round alike
    threads: int
    mixed_precision: bool  # whether it calibrates and measures perplexity in bfloat16
    gpu_ids: list[str]
    cuda_visible_devices: str | None
    versions: Versions


@dataclass(frozen=True)
class ModelSummary:
    """What the driver must know of the model; every worker finds the same."""

    architecture: str
    parameters: int
    bytes: int  # of the checkpoint's weights
    dtype: str  # of the checkpoint, as torch names it
    groups: tuple[InputGroup, ...]
    left_dense: Mapping[str, str]  # matrices that no target compresses, and why

    @property
    def layers(self) -> tuple[LinearLayer, ...]:
        return tuple(layer for group in self.groups for layer in group.layers)


@dataclass(frozen=True)
class TakenOver:
    """What a worker need not solve again, and the checkpoints that it refused."""

    solved: Mapping[str, list[LayerCandidates]]  # by group
    refused: list[Refusal]

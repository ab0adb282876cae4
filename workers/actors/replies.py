"""The replies of a worker to its driver: plain data, which the driver reads without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.domain.costs.shapes import Model
from service.inputs.models.source_card import SourceCard
from workers.actors.versions import Versions
from workers.compression.candidates import LayerCandidates
from workers.compression.shapes import InputGroup, LinearLayer, VocabularyMatrix
from workers.resumption.checkpoints import Refusal


@dataclass(frozen=True)
class WorkerPlace:
    """The machine and the device that a worker runs on."""

    worker: int
    host: str
    node: str  # Ray's id of the machine
    pid: int
    device: str
    kind: str  # of the device; devices of one kind round in the same way
    threads: int
    mixed_precision: bool  # whether it calibrates and measures perplexity in bfloat16
    gpu_ids: list[str]
    cuda_visible_devices: str | None
    versions: Versions
    memory_bytes: int  # of the machine
    disk_bytes: int  # of the one with the scratch folder
    gpu_bytes: int | None


@dataclass(frozen=True)
class ModelSummary:
    """The model's properties that the driver needs; all workers report the same ones."""

    architecture: str
    parameters: int
    bytes: int  # of the checkpoint's weights
    source_format: str  # "safetensors", or "gguf", of which the checkpoint is an expansion
    source_bytes: int  # of the source's weight files as they are
    dtype: str  # of the checkpoint, as torch names it
    groups: tuple[InputGroup, ...]
    blocks: tuple[tuple[str, ...], ...]  # the names of the layers in each block
    uniform: bool  # whether all weights are stored in `dtype`
    unfused: bool  # whether experts or transposed weights become linear layers in artifacts
    vocabulary: tuple[VocabularyMatrix, ...]  # embedding and output layer, if a target rounds them
    left_dense: Mapping[str, str]  # the reason for each matrix that no target compresses
    carried: Mapping[str, str]  # the reason for each stored tensor that is copied though unused
    left_out: Mapping[str, str]  # the reason for each stored tensor that artifacts lack
    card: SourceCard  # what the source says of its name and licence
    shapes: Model | None  # for predictions; None if the cost model does not know them

    @property
    def layers(self) -> tuple[LinearLayer, ...]:
        return tuple(layer for group in self.groups for layer in group.layers)

    def artifact_dtype(self, wanted: str) -> str:
        """The precision of artifacts, as torch names it; `auto` is the checkpoint's."""
        return self.dtype if wanted == "auto" else wanted


@dataclass(frozen=True)
class TrainingStep:
    """One step of a recovery, which its owners take with every layer."""

    number: int  # counted from 0
    steps: int  # of the whole recovery
    tokens: int  # of the batch
    factor: float  # of the step size


@dataclass(frozen=True)
class TakenOver:
    """The groups that a worker need not solve again, and the checkpoints that it refused."""

    solved: Mapping[str, list[LayerCandidates]]  # by group
    refused: list[Refusal]

"""How large an artifact is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointSize:
    """What a checkpoint on disk holds."""

    parameters: int
    bytes: int  # of its safetensors files

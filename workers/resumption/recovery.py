"""Checkpoints during the recovery of a target: the layers in training at one worker.

All workers write at the same steps, the last of them with a state of the whole recovery, so that a
later attempt goes on at the latest step that every worker has. Recovery is exact: resumed, it gives
the same result as uninterrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from safetensors.torch import load
from torch import Tensor

from workers.resumption.checkpoints import Checkpoints, Manifest, Refusal, Refused
from workers.resumption.tensors import tensor_bytes

Layers = Mapping[str, Mapping[str, Tensor]]
"""The state of each layer in training, by its name."""


@dataclass(frozen=True)
class SavedRecovery:
    """How far an earlier attempt has come: what the driver has noted, and this worker's layers."""

    noted: Mapping[str, Any]
    layers: Layers


class RecoveryCheckpoints:
    """Writes and reads the checkpoints of one worker, and keeps the two last ones of a target."""

    def __init__(self, checkpoints: Checkpoints, worker: int) -> None:
        self._checkpoints = checkpoints
        self._worker = worker
        self._last: dict[str, Manifest] = {}  # by target

    def restore(self, target: str) -> tuple[list[SavedRecovery], list[Refusal]]:
        """The intact checkpoints of a target, and the damaged ones."""
        found, refused = self._checkpoints.find(self._name(target))
        saved = []
        for manifest in found:
            try:
                saved.append(SavedRecovery(manifest.content["noted"], self._read(manifest)))
            except Refused as error:
                refused.append(error.refusal)
        return saved, refused

    def write(self, target: str, noted: Mapping[str, Any], layers: Layers) -> str | None:
        """Write a target's layers; the reason if that fails."""
        names = list(layers)
        files = {
            f"{number:05d}.safetensors": partial(tensor_bytes, layers[name])
            for number, name in enumerate(names)
        }
        kept = [self._last[target]] if target in self._last else []
        content = {"noted": noted, "layers": names}
        written = self._checkpoints.replace(self._name(target), files, content, also_kept=kept)
        if isinstance(written, str):
            return written
        self._last[target] = written
        return None

    def _name(self, target: str) -> str:
        return f"recovery/{target}/{self._worker}"

    def _read(self, manifest: Manifest) -> Layers:
        names = {f"{n:05d}.safetensors": name for n, name in enumerate(manifest.content["layers"])}
        layers: dict[str, dict[str, Tensor]] = {}

        def use(file: str, data: bytes) -> None:
            layers[names[file]] = {key: each.clone() for key, each in load(data).items()}

        self._checkpoints.read(manifest, use)
        return layers

"""Checkpoints of solved groups: each is written once, while its worker solves the next group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from safetensors.torch import load

from workers.compression.shapes import InputGroup
from workers.compression.state import SolvedLayer, read_solved, solved_tensors
from workers.resumption.checkpoints import Checkpoints, Manifest, Refusal, Refused
from workers.resumption.tensors import tensor_bytes

PAUSE_SECONDS = 60
"""The pause after a failed write, so that solving does not wait for a failing bucket."""


class SolvedCheckpoints:
    """Writes and reads the solutions of a worker's groups; a file holds one layer."""

    def __init__(self, checkpoints: Checkpoints, groups: Iterable[InputGroup]) -> None:
        """`groups` are all groups of the model, in its order."""
        self._checkpoints = checkpoints
        self._groups = {group.name: group for group in groups}
        self._names = {name: f"solved/{number:05d}" for number, name in enumerate(self._groups)}
        self._thread = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._paused_until = 0.0
        self.trouble: str | None = None
        """Why a write failed; None if none did."""

    def restore(
        self, wanted: Iterable[str], keep: Callable[[str, Sequence[SolvedLayer]], None]
    ) -> list[Refusal]:
        """Pass the solutions of these groups in intact checkpoints to `keep`, group by group.

        Returns the damaged checkpoints.
        """
        names = {self._names[group] for group in wanted}
        found, refused = self._checkpoints.find("solved", only=names)
        kept: set[str] = set()
        for manifest in found:
            group = self._groups[manifest.content["group"]]
            if group.name not in kept:
                try:
                    keep(group.name, self._read(manifest, group))
                except Refused as error:
                    refused.append(error.refusal)
                else:
                    kept.add(group.name)
        return refused

    def write(self, group: str, solutions: Mapping[str, SolvedLayer]) -> None:
        """Start to write a group once the previous one is written; skip it soon after a failure."""
        self.finish()
        if time.monotonic() >= self._paused_until:
            self._pending = self._thread.submit(self._try_to_write, group, dict(solutions))

    def finish(self) -> None:
        """Wait until the last write has ended."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _try_to_write(self, group: str, solutions: Mapping[str, SolvedLayer]) -> None:
        files = {
            f"{number:05d}.safetensors": partial(_saved, solutions[layer.name])
            for number, layer in enumerate(self._groups[group].layers)
        }
        written = self._checkpoints.replace(self._names[group], files, {"group": group})
        if isinstance(written, str):
            self.trouble = written
            self._paused_until = time.monotonic() + PAUSE_SECONDS

    def _read(self, manifest: Manifest, group: InputGroup) -> list[SolvedLayer]:
        layers = {f"{number:05d}.safetensors": layer for number, layer in enumerate(group.layers)}
        read: dict[str, SolvedLayer] = {}

        def use(file: str, data: bytes) -> None:
            layer = layers[file]
            read[layer.name] = read_solved(layer, load(data))

        self._checkpoints.read(manifest, use)
        return [read[layer.name] for layer in group.layers]


def _saved(solved: SolvedLayer) -> bytes:
    return tensor_bytes(solved_tensors(solved))

"""Writes artifacts, proves them, and publishes them with report and model card.

It runs in the process of the worker that will measure them, on a thread of its own, because it also
waits for layers that this worker serves.
"""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from service.disk_full import naming_full_disk
from service.domain.job import Artifact
from service.domain.spec.job import JobSpec
from service.report.page import report_page
from service.settings import Settings
from service.storage.publication import publish
from service.storage.s3 import ObjectStorage
from workers.actors.worker import Worker
from workers.artifact.checkpoint_writer import write_checkpoint
from workers.artifact.size import CheckpointSize
from workers.compression.candidates import Width
from workers.compression.checkpoint import Replacement
from workers.proof.accounts import unaccounted
from workers.proof.proof import Claim, Reference, prove, refuse
from workers.proof.result import Proof

PREFETCHED_LAYERS = 4
"""The number of layers that are factorised and sent while the layers before them are written."""


class Assembler:
    """See the module. Its Ray actor is the worker's, in `workers.actors.interface`."""

    def __init__(self, spec: JobSpec, attempt: str, worker: Worker) -> None:
        self._spec = spec
        self._worker = worker
        self._settings = Settings()
        self._claims: list[Claim] = []
        self._dense: Reference | None = None  # of the source model, at one of the workers
        self._scratch = self._settings.scratch_dir / attempt

    def assemble(
        self,
        target: str,
        forms: Mapping[str, int | Width],
        owners: Mapping[str, Any],
        dtype: str,
        sequences: Sequence[Sequence[int]],
    ) -> tuple[Path, CheckpointSize]:
        """Write a target's checkpoint; `owners` are the workers that solved each layer.

        The logits of the source model with these layers are kept for `prove`. Raises ModelInvalid
        if the source lacks any parameter of the model, and DiskFull.
        """
        worker = self._worker

        def compressed(layers: Sequence[str]) -> Iterator[Replacement]:
            requested: deque[Any] = deque()
            for layer in layers:
                requested.append(owners[layer].compressed.remote(layer, forms[layer]))
                if len(requested) > PREFETCHED_LAYERS:
                    yield ray.get(requested.popleft())
            while requested:
                yield ray.get(requested.popleft())

        def layers_of(names: Sequence[str]) -> Mapping[str, Replacement]:
            replaced = [name for name in names if name in forms]
            return dict(zip(replaced, compressed(replaced), strict=True))

        folder, precision = self._scratch / target, getattr(torch, dtype)
        with naming_full_disk(folder):
            size = write_checkpoint(
                worker.source, folder, forms, compressed, precision, worker.vocabulary
            )
        reference = Reference.of(sequences, partial(self._logits_at, precision, layers_of))
        self._claims.append(Claim(target, folder, reference))
        if self._dense is None and worker.number == 0:
            self._dense = Reference.of(sequences, partial(self._logits_at, None, lambda _: {}))
        return folder, size

    def _logits_at(
        self,
        dtype: torch.dtype | None,
        layers_of: Callable[[Sequence[str]], Mapping[str, Replacement]],
        tokens: Tensor,
        positions: Tensor,
    ) -> Tensor:
        """The logits (sequences, positions, vocabulary) of a variant, computed as the proof does.

        `layers_of` gives the replacements of those layers among the named ones that have any.
        """
        measurer = self._worker.measurer
        vocabulary: Any = layers_of([matrix.name for matrix in self._worker.vocabulary])
        measurer.begin([tokens.tolist()], [vocabulary], dtype, mixed_precision=False)
        for number, names in enumerate(self._worker.blocks):
            measurer.forward(number, [layers_of(names)])
        return measurer.logits(positions)

    def prove(self) -> dict[str, Proof]:
        """Prove every artifact that was written here. Raises the errors of `proof.prove`."""
        worker = self._worker
        folders = [claim.folder for claim in self._claims]
        found = unaccounted(worker.source, folders, worker.original)
        for claim, differences in zip(self._claims, found, strict=True):
            refuse(claim.name, differences)
        dtype = None if self._spec.dtype == "auto" else self._spec.dtype
        with naming_full_disk(self._scratch):
            return prove(
                self._claims,
                worker.source,
                self._scratch,
                dtype=dtype,
                carried=worker.carried,
                memory_bytes=worker.model_memory_bytes,
                dense=self._dense,
            )

    def publish(
        self, job_id: str, attempt: int, target: str, report: Mapping[str, Any], card: str
    ) -> Artifact:
        """Add the report and the model card, and put the artifact into the bucket.

        Raises DiskFull, and the errors of `service.storage.publication.publish`.
        """
        folder = self._scratch / target
        text = json.dumps(report, indent=2, sort_keys=True, allow_nan=False) + "\n"
        with naming_full_disk(folder):
            (folder / "report.json").write_text(text, "utf-8")
            (folder / "report.html").write_text(report_page(report), "utf-8")
            (folder / "README.md").write_text(card, "utf-8")
        storage = ObjectStorage.from_settings(
            self._settings, patience_seconds=self._settings.retry_timeout_seconds
        )
        return publish(storage, job_id, attempt, target, folder)

    def clean(self) -> None:
        """Remove the attempt's files on this node."""
        shutil.rmtree(self._scratch, ignore_errors=True)

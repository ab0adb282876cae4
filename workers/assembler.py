"""The actor that writes one artifact: the checkpoint, its report and card, and their publication.

It stands on the node of the worker that will measure the artifact, so that both see one folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch

from service.artifacts import publish
from service.jobs import Artifact
from service.settings import Settings
from service.spec import JobSpec
from service.storage import ObjectStorage
from workers.checkpoint_writer import CheckpointSize, write_checkpoint
from workers.compression.solve import Factors
from workers.model import prepare_model


class Assembler:
    """See the module. Made a Ray actor by `workers.crew`."""

    def __init__(self, spec: JobSpec, attempt: str, target: str) -> None:
        self._spec = spec
        self._target = target
        self._settings = Settings()
        self._scratch = self._settings.scratch_dir / attempt / target
        self._folder = self._scratch / "artifact"

    def assemble(
        self, ranks: Mapping[str, int], owners: Mapping[str, Any], dtype: str
    ) -> tuple[Path, CheckpointSize]:
        """Write the checkpoint; `owners` are the workers that hold each layer's factors.

        Raises ModelInvalid if the source's tensors do not carry the names of the model's layers.
        """
        shutil.rmtree(self._scratch, ignore_errors=True)
        source = prepare_model(self._spec.model, self._settings)

        def factors(layer: str) -> Factors:
            fetched: Factors = ray.get(owners[layer].factors.remote(layer, ranks[layer]))
            return fetched

        size = write_checkpoint(source, self._folder, ranks, factors, getattr(torch, dtype))
        return self._folder, size

    def publish(self, job_id: str, report: Mapping[str, Any], card: str) -> Artifact:
        """Add the report and the model card, and put the artifact into the bucket."""
        text = json.dumps(report, indent=2, sort_keys=True, allow_nan=False) + "\n"
        (self._folder / "report.json").write_text(text, "utf-8")
        (self._folder / "README.md").write_text(card, "utf-8")
        storage = ObjectStorage.from_settings(self._settings)
        return publish(storage, job_id, self._target, self._folder)

    def clean(self) -> None:
        """Remove the artifact's local files."""
        shutil.rmtree(self._scratch, ignore_errors=True)

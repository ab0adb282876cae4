"""A worker's part in measuring the model and its compressed variants on text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from service.settings import Settings
from workers.actors.room import boundary_store
from workers.compression.checkpoint import Replacement
from workers.evaluation.losses import TextLoss
from workers.evaluation.sweep import EvaluationSweep, Vocabulary, rounded
from workers.model.blocks import StoredModel
from workers.model.loading import stored_dtypes
from workers.sweeps.boundaries import Boundaries


class Measurer:
    """See the module. `dtype` is the precision of the variants' artifacts; None: the source's."""

    def __init__(
        self,
        stored: StoredModel,
        source: Path,
        *,
        mixed_precision: bool,
        settings: Settings,
        scratch: Path,
    ) -> None:
        self._stored = stored
        self._source = source
        self._mixed_precision = mixed_precision
        self._settings = settings
        self._scratch = scratch
        self._in_precision = lru_cache(1)(self._rounded_model)
        self._sweep: EvaluationSweep | None = None
        self._boundaries = Boundaries({}, scratch)
        self._dtype: torch.dtype | None = None

    def begin(
        self,
        batches: Sequence[Sequence[Sequence[int]]],
        vocabularies: Sequence[Vocabulary],
        dtype: torch.dtype | None,
        *,
        mixed_precision: bool | None = None,
    ) -> None:
        """Start a sweep over some batches, with a variant for each of `vocabularies`.

        It is in the worker's mixed precision unless that is given.
        """
        stored = self._stored if dtype is None else self._in_precision(dtype)
        self._boundaries, _ = boundary_store(stored.device, self._settings, self._scratch)
        self._dtype = dtype
        self._sweep = EvaluationSweep(
            stored.passage,
            stored,
            batches,
            vocabularies,
            self._boundaries,
            mixed_precision=self._mixed_precision if mixed_precision is None else mixed_precision,
        )

    def forward(self, number: int, layers: Sequence[Mapping[str, Replacement]]) -> None:
        """Take all batches through a block, in each variant with its own layers."""
        self._begun.forward(
            number,
            [
                {name: self._as_stored(layer) for name, layer in variant.items()}
                for variant in layers
            ],
        )

    def losses(self) -> list[list[TextLoss]]:
        """The loss of every batch, by variant; ends the sweep."""
        losses = self._begun.losses()
        self._end()
        return losses

    def logits(self, positions: Tensor) -> Tensor:
        """The first variant's logits at some positions of the first batch; ends the sweep."""
        logits = self._begun.logits(0, 0, positions)
        self._end()
        return logits

    def _end(self) -> None:
        self._boundaries.clear()
        self._sweep = None

    def _as_stored(self, layer: Replacement) -> Replacement:
        return layer if self._dtype is None else rounded(layer, self._dtype)

    def _rounded_model(self, dtype: torch.dtype) -> StoredModel:
        if set(stored_dtypes(self._source)) == {dtype}:
            return self._stored
        return StoredModel(self._source, self._stored.device, rounded=dtype)

    @property
    def _begun(self) -> EvaluationSweep:
        assert self._sweep is not None  # noqa: S101 - `begin` comes first
        return self._sweep

"""Measures variants of the source model on text, by one sweep of all workers over its blocks.

Each worker takes a share of the batches through all variants. A block is read once for all of them,
and the low-rank layers come from the workers that solved them. So nothing depends on the model's
depth but the time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

import ray

from workers.actors.replies import ModelSummary
from workers.compression.candidates import Forms
from workers.evaluation.losses import TextLoss

BLOCKS_IN_FLIGHT = 2
"""For how many blocks the low-rank layers are in the object store at once."""

Variant = Forms | None
"""The form of each layer, None where it is dense; no forms at all: the source model."""

Batches = Sequence[Sequence[Sequence[int]]]
"""Each of token sequences."""

Advance = Callable[[int, int], None]
"""Is told how many steps of a measurement are done, and how many there are."""


class LossSweeps:
    """See the module. `owners` has the worker that solved each layer, `dtype` is the artifacts'."""

    def __init__(
        self,
        workers: Sequence[Any],
        owners: Mapping[str, Any],
        model: ModelSummary,
        dtype: str,
    ) -> None:
        self._workers = workers
        self._owners = owners
        self._blocks = model.blocks
        self._vocabulary = [matrix.name for matrix in model.vocabulary]
        self._dtype = dtype
        self._exact = model.uniform and model.dtype == dtype

    def measure(
        self, variants: Sequence[Variant], batches: Batches, advance: Advance | None = None
    ) -> list[list[TextLoss]]:
        """The losses by variant and batch; calls `advance` after each block."""
        found: dict[int, list[TextLoss]] = {}
        parts = self._parts(variants)
        steps, done = len(parts) * len(self._blocks), count(1)

        def step() -> None:
            if advance is not None:
                advance(next(done), steps)

        for dtype, numbers in parts:
            losses = self._sweep([variants[n] for n in numbers], batches, dtype, step)
            found |= zip(numbers, losses, strict=True)
        return [found[number] for number in range(len(variants))]

    def _parts(self, variants: Sequence[Variant]) -> list[tuple[str | None, list[int]]]:
        """The variants of each sweep, with the precision of their weights; None: the source's.

        The source model and the artifacts share a sweep if all weights are stored as in artifacts.
        """
        if self._exact:
            return [(self._dtype, list(range(len(variants))))]
        dense = [number for number, variant in enumerate(variants) if variant is None]
        others = [number for number, variant in enumerate(variants) if variant is not None]
        return [(dtype, part) for dtype, part in ((None, dense), (self._dtype, others)) if part]

    def _sweep(
        self,
        variants: Sequence[Variant],
        batches: Batches,
        dtype: str | None,
        step: Callable[[], None],
    ) -> list[list[TextLoss]]:
        most = min(len(self._workers), len(batches))
        workers = self._workers[:most]
        shares = [batches[number::most] for number in range(most)]
        names, compressed = self._compressed(self._vocabulary, variants)
        ray.get(
            [
                worker.begin_measuring.remote(share, names, dtype, *compressed)
                for worker, share in zip(workers, shares, strict=True)
            ]
        )
        del compressed
        running: deque[list[Any]] = deque()
        for number, layers in enumerate(self._blocks):
            names, compressed = self._compressed(layers, variants)
            running.append([w.measure_block.remote(number, names, *compressed) for w in workers])
            del compressed
            if len(running) > BLOCKS_IN_FLIGHT:
                ray.get(running.popleft())
                step()
        for calls in running:
            ray.get(calls)
            step()
        measured = ray.get([worker.measured.remote() for worker in workers])
        return [
            [measured[number % most][variant][number // most] for number in range(len(batches))]
            for variant in range(len(variants))
        ]

    def _compressed(
        self, layers: Sequence[str], variants: Sequence[Variant]
    ) -> tuple[list[list[str]], list[Any]]:
        """Those of some layers that are not dense, by variant, and references to all of them."""
        forms = [
            {name: form for name in layers if (form := (variant or {}).get(name)) is not None}
            for variant in variants
        ]
        references = [
            self._owners[name].compressed.remote(name, form)
            for each in forms
            for name, form in each.items()
        ]
        return [list(each) for each in forms], references

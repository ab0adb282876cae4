"""Measures several variants of a model on text in one forward sweep, which reads each block once.

A variant is the model with other layers in place of some dense ones, and perhaps with a rounded
embedding and output layer. It computes the same as the artifact with these layers, which is in one
precision throughout (see `rounded`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from workers.compression.checkpoint import Replacement, replace_layers
from workers.compression.interpolation import Interpolation
from workers.compression.rounding.embeddings import in_place
from workers.compression.rounding.grid import RoundedWeight
from workers.evaluation.losses import SequenceLoss, TextLoss
from workers.evaluation.text import right_padded, sequence_loss
from workers.sweeps.boundaries import Boundaries
from workers.sweeps.passage import BlockCall, BlockWeights, Passage, equal, tokens_at_once

Layers = Mapping[str, Replacement]
"""What a variant has in place of dense layers, by their names."""

Vocabulary = Mapping[str, RoundedWeight]
"""The same of the embedding and the output layer; see `VocabularyMatrix`."""


class EvaluationSweep:
    """The sweep of one worker over its batches, of sequences of any lengths.

    Call `forward` for every block in order, then `losses`. There is a variant for each of
    `vocabularies`. With `mixed_precision` the model runs under `torch.autocast` in bfloat16.
    """

    def __init__(
        self,
        passage: Passage,
        weights: BlockWeights,
        batches: Sequence[Sequence[Sequence[int]]],
        vocabularies: Sequence[Vocabulary],
        boundaries: Boundaries,
        *,
        mixed_precision: bool = False,
    ) -> None:
        self._passage = passage
        self._weights = weights
        self._batches = batches
        self._vocabularies = vocabularies
        self._boundaries = boundaries
        self._autocast = partial(passage.autocast, enabled=mixed_precision)
        self._calls: list[dict[int, tuple[BlockCall, ...]]] = [{} for _ in batches]  # by variant
        dense = [variant for variant, own in enumerate(vocabularies) if not own]
        others = [[variant] for variant, own in enumerate(vocabularies) if own]
        for alike in filter(None, (dense, *others)):
            with self._vocabulary_of(alike[0]):
                self._enter(alike)

    def _enter(self, variants: Sequence[int]) -> None:
        """Take all batches to the first block, in variants with the same embedding."""
        for index, sequences in enumerate(self._batches):
            # Padding is on the right: under a causal mask no real token attends to it.
            with self._autocast():
                hidden, calls = self._passage.enter(right_padded(sequences))
            known = next(iter(self._calls[index].values()), calls)
            for variant in variants:  # masks that are equal take the memory of one
                self._calls[index][variant] = known if equal(calls, known) else calls
                self._boundaries.put((variant, index), hidden)

    @torch.no_grad()
    def forward(self, number: int, layers: Sequence[Layers]) -> None:
        """Take every batch through a block, in each variant; `layers` has those in the block."""
        blocks = len(self._passage.blocks)
        following = number + 1 if number + 1 < blocks else None
        with self._weights.hold(number, following) as block:
            for variant, replaced in enumerate(layers):
                with self._passage.restoring(replaced):
                    replace_layers(self._passage.model, replaced)
                    for index, calls in enumerate(self._calls):
                        hidden = self._boundaries.get(
                            (variant, index), self._passage.device, following=(variant, index + 1)
                        )
                        with self._autocast():
                            output = calls[variant][number](block, hidden)
                        self._boundaries.put((variant, index), output)

    @torch.no_grad()
    def losses(self) -> list[list[TextLoss]]:
        """The loss of every batch, by variant. It is infinite if the arithmetic overflows."""
        losses = []
        for variant in range(len(self._vocabularies)):
            with self._vocabulary_of(variant):
                losses.append([self._loss(variant, index) for index in range(len(self._batches))])
        return losses

    @torch.no_grad()
    def logits(self, variant: int, index: int, positions: Tensor) -> Tensor:
        """The logits at some positions of a batch, (batch, positions, vocabulary), in float32."""
        hidden = self._boundaries.get((variant, index), self._passage.device)
        chosen = hidden[:, positions.to(hidden.device)]
        with self._vocabulary_of(variant), self._autocast():
            return torch.cat([self._passage.leave(rows[None]).float().cpu() for rows in chosen])

    def _vocabulary_of(self, variant: int) -> AbstractContextManager[None]:
        return in_place(self._passage.model, self._vocabularies[variant])

    def _loss(self, variant: int, index: int) -> TextLoss:
        hidden = self._boundaries.get((variant, index), self._passage.device)
        return TextLoss(
            tuple(
                self._sequence_loss(rows, torch.tensor(tokens, device=hidden.device))
                for rows, tokens in zip(hidden, self._batches[index], strict=True)
            )
        )

    def _sequence_loss(self, hidden: Tensor, tokens: Tensor) -> SequenceLoss:
        """The loss on a sequence; `hidden` is (padded length, hidden)."""
        targets, size = tokens[1:], tokens_at_once(self._passage)
        pieces = []
        for start in range(0, len(targets), size):
            labels = targets[start : start + size]
            with self._autocast():
                logits = self._passage.leave(hidden[None, start : start + len(labels)])
            pieces.append(sequence_loss(logits[0], labels))
        return SequenceLoss(
            sum(piece.negative_log_likelihood for piece in pieces),
            len(targets),
            sum(piece.correct for piece in pieces),
        )


def rounded(layer: Replacement, dtype: torch.dtype) -> Replacement:
    """The layer as an artifact in this precision has it; integers are as it has them already."""
    if not isinstance(layer, Interpolation):
        return layer
    bias: Tensor | None = None if layer.bias is None else layer.bias.to(dtype)
    return replace(layer, basis=layer.basis.to(dtype), rest=layer.rest.to(dtype), bias=bias)

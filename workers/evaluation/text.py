"""The loss of a model on text that it was not calibrated on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = -100
"""The label of padding."""


@dataclass(frozen=True)
class TextLoss:
    """Summed cross-entropy over predicted tokens."""

    negative_log_likelihood: float  # nats
    tokens: int
    sequences: int

    @classmethod
    def total(cls, losses: Iterable[TextLoss]) -> TextLoss:
        """The loss on all batches together, the same in whatever order they come."""
        losses = list(losses)
        return cls(
            math.fsum(loss.negative_log_likelihood for loss in losses),
            sum(loss.tokens for loss in losses),
            sum(loss.sequences for loss in losses),
        )

    @property
    def perplexity(self) -> float:
        """exp of the mean loss per token; infinite where that overflows a float."""
        mean = self.negative_log_likelihood / self.tokens
        return math.exp(mean) if mean < math.log(torch.finfo(torch.float64).max) else math.inf


@torch.no_grad()
def text_loss(model: Any, sequences: Sequence[Sequence[int]]) -> TextLoss:
    """The loss on one batch of sequences of any lengths; every token but the first is predicted.

    It is infinite where the model's arithmetic overflows.
    """
    device = next(model.parameters()).device
    input_ids, labels = _padded(sequences)
    # Padding stands on the right: under a causal mask no real token sees it.
    logits = model(input_ids=input_ids.to(device), use_cache=False).logits
    loss = functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(),
        labels[:, 1:].flatten().to(device),
        ignore_index=IGNORED,
        reduction="sum",
    )
    predicted = int((labels[:, 1:] != IGNORED).sum())
    return TextLoss(float(loss.nan_to_num(math.inf)), predicted, len(sequences))


def _padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Input ids and labels, both (batch, longest)."""
    longest = max(map(len, sequences))
    input_ids = torch.zeros(len(sequences), longest, dtype=torch.long)
    labels = torch.full_like(input_ids, IGNORED)
    for row, tokens in enumerate(sequences):
        input_ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, : len(tokens)] = torch.tensor(tokens)
    return input_ids, labels

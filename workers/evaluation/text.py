"""The loss of a model on text that it was not calibrated on, and how sure that number is.

Everything is kept per sequence: standard errors treat a sequence as one draw, and two models are
compared sequence by sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import fsum, inf
from typing import Any

import torch
from torch import Tensor

from workers.evaluation.estimates import Estimate, ratio

TOKENS_AT_ONCE = 128
"""Logits of so many tokens are reduced together, so that what is made of them stays in cache."""


@dataclass(frozen=True)
class SequenceLoss:
    """One sequence: every token but the first is predicted."""

    negative_log_likelihood: float  # nats, summed over the predicted tokens
    tokens: int  # predicted
    correct: int  # of them, those that the model held for the most likely


@dataclass(frozen=True)
class TextLoss:
    """The loss on a text, sequence by sequence."""

    each: tuple[SequenceLoss, ...]

    @classmethod
    def total(cls, losses: Iterable[TextLoss]) -> TextLoss:
        """The loss on all batches together; what is estimated is the same in any order of them."""
        return cls(tuple(sequence for loss in losses for sequence in loss.each))

    @property
    def negative_log_likelihood(self) -> float:
        """Nats, summed over the predicted tokens."""
        return fsum(sequence.negative_log_likelihood for sequence in self.each)

    @property
    def tokens(self) -> int:
        return sum(sequence.tokens for sequence in self.each)

    @property
    def sequences(self) -> int:
        return len(self.each)

    @property
    def perplexity(self) -> float:
        """exp of the mean loss per token; infinite where that overflows a float."""
        return self.estimated_perplexity().value

    def estimated_perplexity(self) -> Estimate:
        """The perplexity with its standard error."""
        return ratio([s.negative_log_likelihood for s in self.each], self._weights).exp()

    def estimated_accuracy(self) -> Estimate:
        """The share of tokens that were predicted as the most likely one."""
        return ratio([s.correct for s in self.each], self._weights)

    def perplexity_ratio(self, dense: TextLoss) -> Estimate:
        """This perplexity over another model's on the same sequences in the same order."""
        return ratio(
            [
                after.negative_log_likelihood - before.negative_log_likelihood
                for after, before in self._paired(dense)
            ],
            self._weights,
        ).exp()

    def accuracy_difference(self, dense: TextLoss) -> Estimate:
        """This accuracy minus another model's on the same sequences in the same order."""
        pairs = self._paired(dense)
        return ratio([after.correct - before.correct for after, before in pairs], self._weights)

    @property
    def _weights(self) -> list[float]:
        return [sequence.tokens for sequence in self.each]

    def _paired(self, other: TextLoss) -> list[tuple[SequenceLoss, SequenceLoss]]:
        pairs = list(zip(self.each, other.each, strict=True))
        if any(one.tokens != another.tokens for one, another in pairs):
            raise ValueError("two losses were not measured on the same sequences")
        return pairs


@torch.inference_mode()
def text_loss(model: Any, sequences: Sequence[Sequence[int]]) -> TextLoss:
    """The loss on one batch of sequences of any lengths; every token but the first is predicted.

    It is infinite where the model's arithmetic overflows.
    """
    device = next(model.parameters()).device
    # Padding stands on the right: under a causal mask no real token sees it.
    logits = model(input_ids=right_padded(sequences).to(device), use_cache=False).logits
    return TextLoss(
        tuple(
            _sequence_loss(rows[: len(tokens) - 1], torch.tensor(tokens[1:], device=device))
            for rows, tokens in zip(logits, sequences, strict=True)
        )
    )


def right_padded(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Token ids, (batch, longest), zeros behind the shorter ones."""
    longest = max(map(len, sequences))
    return torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in sequences])


def token_log_likelihoods(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihood in float64 of each target, and whether it was the most likely token.

    `logits` is (tokens, vocabulary), of any precision; `targets` and both results are (tokens,).
    """
    likelihoods, hits = [], []
    for start in range(0, len(targets), TOKENS_AT_ONCE):
        rows = logits[start : start + TOKENS_AT_ONCE].float()
        wanted = targets[start : start + TOKENS_AT_ONCE]
        chosen = rows.gather(1, wanted[:, None])[:, 0]
        likelihoods.append((chosen - rows.logsumexp(1)).double())
        hits.append(rows.argmax(1) == wanted)
    return torch.cat(likelihoods), torch.cat(hits)


def _sequence_loss(logits: Tensor, targets: Tensor) -> SequenceLoss:
    likelihoods, hits = token_log_likelihoods(logits, targets)
    loss = -likelihoods.sum().nan_to_num(nan=-inf, posinf=-inf, neginf=-inf)
    return SequenceLoss(float(loss), len(targets), int(hits.sum()))

"""The loss on a text, sequence by sequence, and the estimates that follow from it.

For standard errors a sequence is one draw, and two models are compared sequence by sequence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import fsum

from workers.evaluation.estimates import Estimate, ratio


@dataclass(frozen=True)
class SequenceLoss:
    """The loss on one sequence, of which every token but the first is predicted."""

    negative_log_likelihood: float  # nats, summed over the predicted tokens
    tokens: int  # predicted
    correct: int  # of them, those that were the model's most likely prediction


@dataclass(frozen=True)
class TextLoss:
    """The loss on a text, sequence by sequence."""

    each: tuple[SequenceLoss, ...]

    @classmethod
    def total(cls, losses: Iterable[TextLoss]) -> TextLoss:
        """The loss on all batches together; their order does not change the estimates."""
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
        """exp of the mean loss per token; infinite if that overflows a float."""
        return self.estimated_perplexity().value

    def estimated_perplexity(self) -> Estimate:
        """The perplexity with its standard error."""
        return ratio([s.negative_log_likelihood for s in self.each], self._weights).exp()

    def estimated_accuracy(self) -> Estimate:
        """The fraction of tokens that were the model's most likely prediction."""
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

"""Calibration by sweeps: a model's statistics, one block at a time.

Blocks touch each other only through the hidden state. A forward sweep keeps the hidden states
between the blocks; the loss gives the gradient of the last one; a backward sweep computes each
block's forward pass again, with its layers observed, and takes the gradient back through it. At
any time the weights and statistics of one block are needed. The statistics are those of automatic
differentiation of the whole model.

If no gradient is observed, the forward sweep observes the layers, and there is no backward sweep.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from workers.compression.errors import NotFinite
from workers.compression.shapes import InputGroup
from workers.compression.statistics import (
    GRADIENTS,
    GroupStatistics,
    Observations,
    Observing,
    cross_entropy,
)
from workers.sweeps.boundaries import Boundaries
from workers.sweeps.passage import BlockCall, BlockWeights, Passage, through_head


@dataclass(frozen=True)
class Observed:
    """What a sweep observes, and how it sums it up."""

    observations: Observations
    groups: tuple[InputGroup, ...]  # of all blocks
    dtype: torch.dtype  # of sums over tokens
    batches: int = sys.maxsize  # so many of a worker's first ones, if no gradients are observed

    @property
    def gradients(self) -> bool:
        return bool(self.observations & GRADIENTS)

    def of(self, block: str, device: torch.device) -> dict[InputGroup, GroupStatistics]:
        """Empty statistics of the groups in the block with this path."""
        return {
            group: GroupStatistics.zeros(group, self.observations, dtype=self.dtype, device=device)
            for group in self.groups
            if group.name.startswith(f"{block}.")
        }


class CalibrationSweep:
    """The two sweeps of one worker over its share of the text.

    `batches` are of full sequences, (batch, length). `keep_every` is `boundaries.stride`'s s. Call
    `forward` for every block in order, then `loss`, then `backward` for every block in reverse.
    With `mixed_precision` the model runs under `torch.autocast` in bfloat16; the statistics do not.
    """

    def __init__(
        self,
        passage: Passage,
        weights: BlockWeights,
        observed: Observed,
        batches: Sequence[Tensor],
        boundaries: Boundaries,
        *,
        keep_every: int = 1,
        mixed_precision: bool = False,
    ) -> None:
        self._passage = passage
        self._weights = weights
        self._observed = observed
        self._batches = batches
        self._boundaries = boundaries
        self._keep_every = keep_every
        self._autocast = partial(passage.autocast, enabled=mixed_precision)
        self._calls: list[tuple[BlockCall, ...]] = []
        for index, tokens in enumerate(batches):
            with self._autocast():
                hidden, calls = passage.enter(tokens)
            boundaries.put((0, index), hidden)
            self._calls.append(calls)

    @property
    def blocks(self) -> int:
        return len(self._passage.blocks)

    @property
    def batches(self) -> int:
        return len(self._batches)

    def forward(self, number: int) -> dict[str, GroupStatistics]:
        """Take every batch through a block; its statistics, if no gradients are observed."""
        statistics = {} if self._observed.gradients else self._statistics(number)
        following = number + 1 if number + 1 < self.blocks else None
        batches, observed = range(self.batches), self._observed.batches
        with self._weights.hold(number, following) as block:
            with self._observing(statistics):
                self._advance(number, block, batches[:observed], keep=self._kept(number))
            self._advance(number, block, batches[observed:], keep=self._kept(number))
        return self._complete(statistics)

    def loss(self) -> list[float]:
        """The summed loss of each batch in nats, after the last block.

        Raises NotFinite if one is not finite.
        """
        losses = []
        for index, tokens in enumerate(self._batches):
            hidden = self._get(self.blocks, index)
            loss, gradient = self._loss(hidden, tokens.to(hidden.device))
            if not math.isfinite(loss):
                raise NotFinite("the model's loss on the calibration text is not finite")
            losses.append(loss)
            self._boundaries.drop((self.blocks, index))
            if self._observed.gradients:
                self._boundaries.put(("gradient", index), gradient)
        return losses

    def backward(self, number: int) -> dict[str, GroupStatistics]:
        """Take the gradients of every batch back through a block; returns its statistics."""
        self._ensure(number)
        statistics = self._statistics(number)
        following = number - 1 if number else None
        with self._weights.hold(number, following) as block, self._observing(statistics):
            for index, calls in enumerate(self._calls):
                hidden = self._get(number, index)
                gradient = self._get("gradient", index)
                hidden = hidden.detach().requires_grad_()
                with torch.enable_grad(), self._autocast():
                    output = calls[number](block, hidden)
                output.backward(gradient)  # type: ignore[no-untyped-call]
                assert hidden.grad is not None  # noqa: S101 - for mypy
                self._boundaries.put(("gradient", index), hidden.grad)
                self._boundaries.drop((number, index))
        return self._complete(statistics)

    def state(self, boundary: int, index: int) -> Tensor:
        """What `resume` needs of a batch to go on at the boundary that was reached last."""
        return self._boundaries.get(self._key(boundary, index), torch.device("cpu"))

    def resume(self, boundary: int, states: Iterable[Tensor]) -> None:
        """Go on at a boundary; `states` are those of all batches, in order."""
        for index, state in enumerate(states):
            if not self._observed.gradients:
                self._boundaries.drop((0, index))
            self._boundaries.put(self._key(boundary, index), state)

    def _key(self, boundary: int, index: int) -> tuple[int | str, int]:
        return ("gradient" if self._observed.gradients else boundary), index

    @torch.no_grad()
    def _advance(
        self, number: int, block: nn.Module, batches: Iterable[int], *, keep: bool
    ) -> None:
        for index in batches:
            hidden = self._get(number, index)
            with self._autocast():
                output = self._calls[index][number](block, hidden)
            if not keep:
                self._boundaries.drop((number, index))
            self._boundaries.put((number + 1, index), output)

    def _get(self, boundary: int | str, index: int) -> Tensor:
        """What is kept of a batch, on the device; that of the next batch is fetched meanwhile."""
        return self._boundaries.get(
            (boundary, index), self._passage.device, following=(boundary, index + 1)
        )

    def _kept(self, number: int) -> bool:
        """Whether a boundary stays for the backward sweep; those of the last segment all do."""
        last = (self.blocks - 1) // self._keep_every * self._keep_every
        return self._observed.gradients and (number % self._keep_every == 0 or number > last)

    def _ensure(self, number: int) -> None:
        """Compute a boundary that was not kept, and those of its segment before it."""
        first = number
        while self._batches and (first, 0) not in self._boundaries:
            first -= 1
        for each in range(first, number):
            with self._weights.hold(each, each + 1) as block:
                self._advance(each, block, range(self.batches), keep=True)

    def _loss(self, hidden: Tensor, tokens: Tensor) -> tuple[float, Tensor]:
        """The summed next-token loss of a batch, and its gradient, of the shape of `hidden`."""
        labels, differentiate = tokens[:, 1:], self._observed.gradients
        return through_head(
            self._passage,
            hidden,
            labels.shape[1],
            lambda sequence, chosen, logits: cross_entropy(
                logits, labels[sequence, chosen], differentiate=differentiate
            ),
            autocast=self._autocast,
            differentiate=differentiate,
        )

    def _statistics(self, number: int) -> dict[InputGroup, GroupStatistics]:
        return self._observed.of(f"{self._passage.prefix}.{number}", self._passage.device)

    def _observing(self, statistics: dict[InputGroup, GroupStatistics]) -> Observing:
        return Observing(self._passage.model, statistics)

    def _complete(
        self, statistics: dict[InputGroup, GroupStatistics]
    ) -> dict[str, GroupStatistics]:
        tokens = sum(batch.numel() for batch in self._batches[: self._observed.batches])
        for each in statistics.values():
            each.tokens = tokens
        return {group.name: each for group, each in statistics.items()}

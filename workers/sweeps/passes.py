"""Which passes over the blocks a calibration still has to make: plain data, without torch."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a pass does with every batch of a worker."""

    FORWARD = "forward"
    """Takes it through one block."""

    LOSS = "loss"
    """Computes its loss, and the gradient of the last block's output."""

    BACKWARD = "backward"
    """Takes its gradient back through one block."""


@dataclass(frozen=True)
class Pass:
    """One step of a sweep; the loss has the number of blocks for its block."""

    kind: Kind
    block: int


@dataclass(frozen=True)
class Sweeps:
    """The sweeps over a model: with gradients there and back, without them there only."""

    blocks: int
    gradients: bool

    @property
    def all(self) -> list[Pass]:
        """Every pass, in order."""
        return self.remaining(range(self.blocks), loss_known=False)

    def remaining(
        self, unsolved: Collection[int], *, loss_known: bool, boundary: int | None = None
    ) -> list[Pass]:
        """The passes that give the statistics of the unsolved blocks, and the loss if needed.

        `boundary` says that the hidden state before this block is known, or with gradients its
        gradient and the loss.
        """
        if self.gradients:
            return self._there_and_back(unsolved, loss_known, boundary)
        end = max(unsolved, default=-1) + 1 if loss_known else self.blocks
        loss = [] if loss_known else [Pass(Kind.LOSS, self.blocks)]
        return [Pass(Kind.FORWARD, number) for number in range(boundary or 0, end)] + loss

    def completing(self, block: int) -> Pass:
        """The pass that completes the statistics of a block."""
        return Pass(Kind.BACKWARD if self.gradients else Kind.FORWARD, block)

    def usable(self, boundary: int, unsolved: Collection[int]) -> bool:
        """Whether no unsolved block lies on the far side of a known boundary."""
        if self.gradients:
            return max(unsolved, default=-1) < boundary
        return min(unsolved, default=self.blocks) >= boundary

    def reached(self, done: Pass) -> int | None:
        """The boundary that is known after a pass, if a later attempt can go on there."""
        if self.gradients:
            return done.block if done.kind is Kind.BACKWARD else None
        return done.block + 1 if done.kind is Kind.FORWARD else None

    def _there_and_back(
        self, unsolved: Collection[int], loss_known: bool, boundary: int | None
    ) -> list[Pass]:
        if boundary is None:
            top = self.blocks
            there = [Pass(Kind.FORWARD, number) for number in range(top)]
            there.append(Pass(Kind.LOSS, self.blocks))
        else:
            top = boundary
            there = [Pass(Kind.FORWARD, number) for number in range(top - 1)]
        back = [
            Pass(Kind.BACKWARD, number)
            for number in range(top - 1, min(unsolved, default=top) - 1, -1)
        ]
        return there + back if back or (not loss_known and boundary is None) else []

"""A model's own forward pass with its blocks taken out.

What comes before the blocks (embeddings, positions, masks) and after them (the final norm, the
output head) is computed by the model's own code, which is called with blocks that do nothing. So
the blocks' weights need not be in memory, and every architecture keeps its peculiarities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from workers.compression.layers import hidden_state, transformer_blocks

LOGITS_BYTES = 64 << 20
"""How many bytes of logits, in float32, are computed at a time."""


@dataclass(frozen=True)
class BlockCall:
    """What the model gives to one block beside the hidden state."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """The block's output, (batch, length, hidden), for an input of the same shape."""
        output: Tensor = block(hidden, *self.args, **self.kwargs)
        return output


class BlockWeights(Protocol):
    """Gives blocks their weights."""

    def hold(self, number: int, following: int | None = None) -> AbstractContextManager[nn.Module]:
        """The block with its weights, while the context is open; `following` comes next."""


class _Entered(Exception):
    """The model has called its last block."""


class Passage:
    """Enters and leaves the blocks of a model.

    The model must have passed `workers.compression.layers.input_groups`, which checks that each
    block is given what the block before it returns. It is frozen and put into evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.eval().requires_grad_(False)
        self.prefix, self.blocks = transformer_blocks(model)
        self._calls: tuple[BlockCall, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @torch.no_grad()
    def enter(self, tokens: Tensor) -> tuple[Tensor, tuple[BlockCall, ...]]:
        """The first block's input for tokens (batch, length), and the call of every block.

        Calls that are equal to those of the last tokens are the same objects: masks and positions
        of many batches take the memory of one.
        """
        calls: list[BlockCall] = []
        first: list[Tensor] = []

        def record(*args: Any, **kwargs: Any) -> Tensor:
            hidden = hidden_state(args, kwargs)
            first.append(hidden)
            others = {name: value for name, value in kwargs.items() if name != "hidden_states"}
            calls.append(BlockCall(args[1:], others))
            if len(calls) == len(self.blocks):
                raise _Entered
            return hidden

        with self._replaced(lambda _: record), suppress(_Entered):
            self.model(input_ids=tokens.to(self.device), use_cache=False)
        if not equal(calls, self._calls):
            self._calls = tuple(calls)
        return first[0], self._calls

    def leave(self, hidden: Tensor) -> Tensor:
        """The logits (batch, length, vocabulary) for the last block's output; differentiable."""
        last = len(self.blocks) - 1

        def replaced(number: int) -> Callable[..., Tensor]:
            return lambda *args, **kwargs: hidden if number == last else hidden_state(args, kwargs)

        tokens = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.device)
        with self._replaced(replaced):
            logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits

    def autocast(self, *, enabled: bool) -> torch.autocast:
        """Have the model multiply in bfloat16, if it is enabled."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    @contextmanager
    def restoring(self, layers: Iterable[str]) -> Iterator[None]:
        """Put these layers back in their places at the end, whatever is there then."""
        dense = {name: self.model.get_submodule(name) for name in layers}
        try:
            yield
        finally:
            for name, module in dense.items():
                self.model.set_submodule(name, module)

    @contextmanager
    def _replaced(self, forward: Callable[[int], Callable[..., Tensor]]) -> Iterator[None]:
        with ExitStack() as stack:
            for number, block in enumerate(self.blocks):
                block.forward = forward(number)
                stack.callback(delattr, block, "forward")
            yield


def tokens_at_once(passage: Passage) -> int:
    """How many tokens' logits may be in memory together, at least one."""
    vocabulary: int = passage.model.config.get_text_config().vocab_size
    return max(1, LOGITS_BYTES // (4 * vocabulary))


LossOfLogits = Callable[[int, slice, Tensor], float]
"""The loss at some positions of a sequence, by its number, from logits of (positions, vocabulary);
if it is differentiated, ∂ℓ/∂logits overwrites these."""


def through_head(
    passage: Passage,
    hidden: Tensor,
    positions: int,
    loss: LossOfLogits,
    *,
    autocast: Callable[[], torch.autocast],
    differentiate: bool,
) -> tuple[float, Tensor]:
    """The sum of a loss over the first positions of all sequences, and its gradient.

    `hidden` is the last block's output, (batch, length, hidden), and so is the shape of the
    gradient, which is zero if it is not wanted. Logits are computed some tokens at a time.
    """
    rows, losses = tokens_at_once(passage), []
    gradient = torch.zeros_like(hidden)
    for sequence, states in enumerate(hidden):
        for start in range(0, positions, rows):
            chosen = slice(start, min(start + rows, positions))
            piece = states[None, chosen].detach().requires_grad_(differentiate)
            with torch.set_grad_enabled(differentiate), autocast():
                logits = passage.leave(piece)
            scores = logits.detach()[0]
            losses.append(loss(sequence, chosen, scores))
            if differentiate:
                logits.backward(scores[None])  # type: ignore[no-untyped-call]
                assert piece.grad is not None  # noqa: S101 - for mypy
                gradient[sequence, chosen] = piece.grad[0]
    return math.fsum(losses), gradient


class InMemory:
    """Gives blocks their weights in a model that has all of them."""

    def __init__(self, passage: Passage) -> None:
        self._blocks = passage.blocks

    @contextmanager
    def hold(self, number: int, following: int | None = None) -> Iterator[nn.Module]:  # noqa: ARG002
        """The block, see `BlockWeights`."""
        yield self._blocks[number]


def equal(one: Any, other: Any) -> bool:
    """Whether two nests of tensors and plain values are equal; the same objects always are."""
    if one is other:
        return True
    if isinstance(one, BlockCall) and isinstance(other, BlockCall):
        return equal(one.args, other.args) and equal(one.kwargs, other.kwargs)
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and bool(torch.equal(one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)

"""Gradients of a compressed model's divergence from the dense one, one block at a time.

The student is the model with layers in training in place of its own. A forward sweep takes a batch
through its blocks and keeps the hidden states between them; the teacher's last hidden state gives
the divergence and its gradient; a backward sweep computes each block again and takes the gradient
back through it. The gradients are those of automatic differentiation of the whole model, and at any
time the weights of one block are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from workers.compression.recovery.student import trainable
from workers.compression.recovery.training import TrainedLayer, TrainedLinear
from workers.sweeps.boundaries import Boundaries
from workers.sweeps.passage import BlockCall, BlockWeights, Passage, through_head

Student = Mapping[str, TrainedLayer]
"""The trained layers in a block, by the names of those in whose places they are."""


class Distillation:
    """One worker's batches of full sequences, (batch, length).

    `taught` gives the teacher's last hidden state for a batch by its number. For each batch call
    `enter`, `forward` for every block in order, and `divergence`; then perhaps `backward` for every
    block in reverse. With `mixed_precision` the model runs under `torch.autocast` in bfloat16.
    """

    def __init__(
        self,
        passage: Passage,
        weights: BlockWeights,
        batches: Sequence[Tensor],
        taught: Callable[[int], Tensor],
        boundaries: Boundaries,
        *,
        mixed_precision: bool = False,
    ) -> None:
        self._passage = passage
        self.weights = weights
        self._batches = batches
        self._taught = taught
        self._boundaries = boundaries
        self._autocast = partial(passage.autocast, enabled=mixed_precision)
        self._index = 0
        self._calls: tuple[BlockCall, ...] = ()
        self._state = torch.empty(0)  # the hidden state, or its gradient on the way back

    @property
    def blocks(self) -> int:
        return len(self._passage.blocks)

    def enter(self, index: int) -> None:
        """Take up a batch."""
        self._index = index
        with self._autocast():
            self._state, self._calls = self._passage.enter(self._batches[index])

    @torch.no_grad()
    def forward(self, number: int, student: Student, *, returns: bool) -> None:
        """Take the batch through a block; `returns` says whether `backward` will be called."""
        if returns:
            self._boundaries.put(("student", number), self._state)
        following = number + 1 if number + 1 < self.blocks else None
        with self._block(number, following, student) as (block, _), self._autocast():
            self._state = self._calls[number](block, self._state)

    def divergence(self, *, returns: bool) -> float:
        """The sum over the batch's tokens of KL(teacher ‖ student), in nats."""
        taught = self._taught(self._index)

        def loss(sequence: int, chosen: slice, logits: Tensor) -> float:
            with torch.no_grad(), self._autocast():
                wanted = self._log_probabilities(
                    self._passage.leave(taught[sequence, None, chosen])
                )
            found, probable = self._log_probabilities(logits[None]), wanted.exp()
            # Each pass over a vocabulary takes as long as a block, so most are in place.
            divergence = torch.linalg.vecdot(probable, wanted.sub_(found))
            if returns:
                logits.copy_(found.exp_().sub_(probable)[0])
            return float(divergence.sum(dtype=torch.float64))

        total, self._state = through_head(
            self._passage,
            self._state,
            self._state.shape[1],
            loss,
            autocast=self._autocast,
            differentiate=returns,
        )
        return total

    def backward(self, number: int, student: Student) -> dict[str, dict[str, Tensor]]:
        """Take the gradient back through a block; those of what is trained there, by layer."""
        hidden = self._boundaries.get(("student", number), self._passage.device)
        hidden = hidden.detach().requires_grad_()
        self._boundaries.drop(("student", number))
        following = number - 1 if number else None
        with self._block(number, following, student) as (block, trained):
            with torch.enable_grad(), self._autocast():
                output = self._calls[number](block, hidden)
            output.backward(self._state)  # type: ignore[no-untyped-call]
        assert hidden.grad is not None  # noqa: S101 - for mypy
        self._state = hidden.grad
        return {name: module.gradients() for name, module in trained.items()}

    def clear(self) -> None:
        """Forget all hidden states, the teacher's included."""
        self._boundaries.clear()

    @contextmanager
    def _block(
        self, number: int, following: int | None, student: Student
    ) -> Iterator[tuple[nn.Module, dict[str, TrainedLinear]]]:
        """The block with its weights and the student's layers, which are also given by name."""
        model, device = self._passage.model, self._passage.device
        trained = {name: trainable(each.to(device)) for name, each in student.items()}
        with self.weights.hold(number, following) as block, self._passage.restoring(student):
            for name, module in trained.items():
                model.set_submodule(name, module)
            yield block, trained

    @staticmethod
    def _log_probabilities(logits: Tensor) -> Tensor:
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

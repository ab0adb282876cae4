"""Measures the loss of a model on text, sequence by sequence.

For standard errors a sequence is one draw, and two models are compared sequence by sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from workers.evaluation.losses import SequenceLoss, TextLoss

TOKENS_AT_ONCE = 128
"""The logits of this many tokens are reduced together, so that the intermediates stay in cache."""


@torch.inference_mode()
def text_loss(
    model: Any, sequences: Sequence[Sequence[int]], *, mixed_precision: bool = False
) -> TextLoss:
    """The loss on one batch of sequences of any lengths; every token but the first is predicted.

    With `mixed_precision` the model runs under `torch.autocast` in bfloat16. The loss is infinite
    if the model's arithmetic overflows.
    """
    device = input_device(model)
    # Padding is on the right: under a causal mask no real token attends to it.
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision):
        logits = model(input_ids=right_padded(sequences).to(device), use_cache=False).logits
    return TextLoss(
        tuple(
            sequence_loss(rows[: len(tokens) - 1], torch.tensor(tokens[1:], device=device))
            for rows, tokens in zip(logits, sequences, strict=True)
        )
    )


def input_device(model: nn.Module) -> torch.device:
    """Where the model takes its input; accelerate moves it if the first weights are on the disk."""
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


def right_padded(sequences: Sequence[Sequence[int]]) -> Tensor:
    """Token ids, (batch, longest), with zeros after shorter sequences."""
    longest = max(map(len, sequences))
    return torch.tensor([[*tokens, *[0] * (longest - len(tokens))] for tokens in sequences])


def token_log_likelihoods(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The log-likelihood of each target in float64, and whether it was the most likely token.

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


def sequence_loss(logits: Tensor, targets: Tensor) -> SequenceLoss:
    """The loss of logits (tokens, vocabulary) for targets (tokens,)."""
    likelihoods, hits = token_log_likelihoods(logits, targets)
    loss = -likelihoods.sum().nan_to_num(nan=-inf, posinf=-inf, neginf=-inf)
    return SequenceLoss(float(loss), len(targets), int(hits.sum()))

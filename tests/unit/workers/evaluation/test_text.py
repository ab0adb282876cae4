"""Perplexity against a brute force in float64, and what padding and broken models do to it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.fixtures.models import tiny_llama_config, tiny_model
from workers.evaluation.text import TextLoss, text_loss

SEQUENCES = [[5, 6, 7, 8, 9, 10, 11], [200, 3], [17, 90, 250, 4]]


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(tiny_llama_config())


class Constant(nn.Module):
    """A model with the same logits everywhere."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, input_ids: Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def brute_force(model: Any, sequences: list[list[int]]) -> tuple[float, int]:
    """The summed loss and its tokens, one sequence at a time and in float64."""
    model = tiny_model(model.config).double()
    losses = []
    for sequence in sequences:
        logits = model(input_ids=torch.tensor([sequence])).logits[0].detach()
        for position, token in enumerate(sequence[1:]):
            losses.append(-float(torch.log_softmax(logits[position], -1)[token]))
    return math.fsum(losses), len(losses)


def test_the_loss_is_that_of_a_brute_force(model: Any) -> None:
    loss = text_loss(model, SEQUENCES)
    expected, tokens = brute_force(model, SEQUENCES)
    assert loss.negative_log_likelihood == pytest.approx(expected, rel=1e-5)
    assert (loss.tokens, loss.sequences) == (tokens, 3) == (10, 3)
    assert loss.perplexity == pytest.approx(math.exp(expected / tokens), rel=1e-5)


def test_padding_has_no_influence(model: Any) -> None:
    together = text_loss(model, SEQUENCES)
    alone = TextLoss.total(text_loss(model, [sequence]) for sequence in SEQUENCES)
    assert together.negative_log_likelihood == pytest.approx(
        alone.negative_log_likelihood, rel=1e-6
    )
    assert (together.tokens, together.sequences) == (alone.tokens, alone.sequences)


def test_a_uniform_model_is_as_perplexed_as_it_has_tokens() -> None:
    loss = text_loss(Constant([0.0] * 300), SEQUENCES)
    assert loss.perplexity == pytest.approx(300)


def test_a_sure_model_is_not_perplexed_at_all() -> None:
    assert text_loss(Constant([0.0, 1000.0]), [[1, 1, 1]]).perplexity == 1.0


def test_half_precision_logits_are_summed_in_full() -> None:
    sequence = [1, *range(200)] * 20
    loss = text_loss(Constant([0.0] * 300).bfloat16(), [sequence])
    assert loss.perplexity == pytest.approx(300, rel=1e-5)


@pytest.mark.parametrize("logit", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_counts_as_infinite(logit: float) -> None:
    assert text_loss(Constant([0.0, logit]), [[1, 1]]).perplexity == math.inf


def test_a_model_that_is_lost_is_infinitely_perplexed_without_an_overflow() -> None:
    assert TextLoss(7090.0, 10, 1).perplexity < math.inf
    assert TextLoss(7100.0, 10, 1).perplexity == math.inf


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_the_total_does_not_depend_on_the_order_of_batches(
    values: list[float], random: Any
) -> None:
    losses = [TextLoss(value, 3, 1) for value in values]
    total = TextLoss.total(losses)
    random.shuffle(losses)
    assert TextLoss.total(losses) == total
    assert (total.tokens, total.sequences) == (3 * len(values), len(values))

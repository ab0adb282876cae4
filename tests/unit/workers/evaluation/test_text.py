"""Perplexity agrees with a float64 brute force, also with padding and broken models."""

from __future__ import annotations

import math
import random
import statistics
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.fixtures.models import tiny_llama_config, tiny_model
from workers.evaluation.estimates import Estimate
from workers.evaluation.losses import SequenceLoss, TextLoss
from workers.evaluation.text import text_loss

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


def test_in_mixed_precision_it_is_nearly_the_same(model: Any) -> None:
    exact = text_loss(model, SEQUENCES)
    mixed = text_loss(model, SEQUENCES, mixed_precision=True)
    assert mixed != exact
    assert mixed.perplexity == pytest.approx(exact.perplexity, rel=1e-2)


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
    assert text_loss(Constant([0.0, logit]), [[1, 1], [1, 1]]).perplexity == math.inf


def test_an_infinite_logit_beside_the_target_is_infinite_too() -> None:
    assert text_loss(Constant([math.inf, 0.0]), [[1, 1], [1, 1]]).perplexity == math.inf


def test_a_model_that_is_lost_is_infinitely_perplexed_without_an_overflow() -> None:
    assert TextLoss((SequenceLoss(7090.0, 10, 0),)).perplexity < math.inf
    assert TextLoss((SequenceLoss(7100.0, 10, 0),)).perplexity == math.inf


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_estimates_do_not_depend_on_the_order_of_batches(values: list[float], random: Any) -> None:
    losses = [TextLoss((SequenceLoss(value, 3, 1),)) for value in values]
    total = TextLoss.total(losses)
    random.shuffle(losses)
    shuffled = TextLoss.total(losses)
    assert shuffled.estimated_perplexity() == total.estimated_perplexity()
    assert shuffled.estimated_accuracy() == total.estimated_accuracy()
    assert (total.tokens, total.sequences) == (3 * len(values), len(values))


def test_a_token_is_predicted_if_no_other_is_more_likely(model: Any) -> None:
    hits = 0
    for sequence in SEQUENCES:
        guessed = model(input_ids=torch.tensor([sequence])).logits[0, :-1].argmax(-1)
        hits += sum(int(a == b) for a, b in zip(guessed, sequence[1:], strict=True))
    assert text_loss(model, SEQUENCES).estimated_accuracy().value == hits / 10
    assert text_loss(Constant([0.0, 9.0]), [[0, 1, 0, 1]]).estimated_accuracy().value == 2 / 3


def test_a_lost_model_has_no_standard_error() -> None:
    lost = text_loss(Constant([0.0, math.nan]), [[1, 1], [1, 1]])
    assert lost.estimated_perplexity() == Estimate(math.inf, None)
    dense = text_loss(Constant([0.0, 1.0]), [[1, 1], [1, 1]])
    assert lost.perplexity_ratio(dense) == Estimate(math.inf, None)


def random_text(seed: int, sequences: int) -> tuple[TextLoss, TextLoss]:
    """A text's loss under two models that mostly agree on what is hard."""
    draw = random.Random(seed)
    dense, compressed = [], []
    for _ in range(sequences):
        tokens = draw.randint(5, 40)
        hard = draw.uniform(1, 4) * tokens
        correct = round(draw.uniform(0.3, 0.6) * tokens)
        dense.append(SequenceLoss(hard, tokens, correct))
        compressed.append(SequenceLoss(1.1 * hard + draw.gauss(0, 1), tokens, correct - 1))
    return TextLoss(tuple(dense)), TextLoss(tuple(compressed))


def bootstrap(text: TextLoss, other: TextLoss, measure: Any) -> float:
    """The standard deviation of a measure over resampled sequences."""
    draw = random.Random(0)
    count = len(text.each)
    values: list[float] = []
    for _ in range(1000):
        chosen = draw.choices(range(count), k=count)
        values.append(
            measure(*(TextLoss(tuple(loss.each[i] for i in chosen)) for loss in (text, other)))
        )
    return float(statistics.stdev(values))


@pytest.mark.parametrize(
    ("measure", "estimate"),
    [
        (lambda d, _: d.perplexity, lambda d, _: d.estimated_perplexity()),
        (lambda d, _: d.estimated_accuracy().value, lambda d, _: d.estimated_accuracy()),
        (lambda d, c: c.perplexity / d.perplexity, lambda d, c: c.perplexity_ratio(d)),
        (
            lambda d, c: c.estimated_accuracy().value - d.estimated_accuracy().value,
            lambda d, c: c.accuracy_difference(d),
        ),
    ],
    ids=["perplexity", "accuracy", "perplexity ratio", "accuracy difference"],
)
def test_standard_errors_are_those_of_a_bootstrap_over_sequences(
    measure: Any, estimate: Any
) -> None:
    dense, compressed = random_text(1, 200)
    estimated = estimate(dense, compressed)
    assert estimated.value == pytest.approx(measure(dense, compressed))
    assert estimated.standard_error == pytest.approx(bootstrap(dense, compressed, measure), rel=0.1)


def test_a_paired_ratio_is_surer_than_its_parts() -> None:
    dense, compressed = random_text(2, 100)
    paired = compressed.perplexity_ratio(dense).standard_error
    alone = compressed.estimated_perplexity().standard_error
    assert paired is not None
    assert alone is not None
    assert paired < 0.2 * alone / dense.perplexity


def test_only_losses_on_the_same_sequences_are_compared() -> None:
    with pytest.raises(ValueError, match="same sequences"):
        random_text(3, 10)[0].perplexity_ratio(random_text(4, 10)[0])

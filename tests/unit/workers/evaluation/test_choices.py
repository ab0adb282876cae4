"""Likelihoods of choices agree with a float64 brute force; ties, lengths and broken models."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.models import byte_tokenizer, tiny_llama_config, tiny_model
from workers.evaluation.choices import score_questions
from workers.evaluation.problems import Question, encode_choice
from workers.evaluation.scores import Scores

TOKENIZER = byte_tokenizer(adds_bos=False)


def question(text: str, *choices: str, answer: int = 0) -> Question:
    return Question(tuple(encode_choice(TOKENIZER, [], text, c) for c in choices), answer)


def brute_force(model: Any, asked: Question) -> tuple[int, int]:
    """The choice of the greatest log-likelihood, and of the greatest per character."""
    found = []
    for choice in asked.choices:
        logits = model(input_ids=torch.tensor([choice.tokens])).logits[0].detach().log_softmax(-1)
        ends = range(len(choice.tokens) - choice.scored, len(choice.tokens))
        found.append(sum(float(logits[i - 1, choice.tokens[i]]) for i in ends))
    lengths = [choice.characters for choice in asked.choices]
    per_character = [total / length for total, length in zip(found, lengths, strict=True)]
    return found.index(max(found)), per_character.index(max(per_character))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_most_likely_choice_is_that_of_a_brute_force(batch_size: int) -> None:
    model = tiny_model(tiny_llama_config())
    asked = [
        question("What is it?", "a cat", "dog", "something else", "x"),
        question("And then", "came rain", "it ended there", "no"),
    ]
    for number, each in enumerate(asked):
        plain, normalised = brute_force(tiny_model(model.config).double(), each)
        for answer in range(len(each.choices)):
            others = [*asked]
            others[number] = Question(each.choices, answer)
            scores = score_questions(model, others, batch_size)
            assert scores.each["acc"][number] == (answer == plain)
            assert scores.each["acc_norm"][number] == (answer == normalised)
            assert scores.problems == 2


class Constant(nn.Module):
    """A model with the same logits everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, input_ids: Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.value.expand(*input_ids.shape, 258))


class Overflowing(nn.Module):
    """A model that holds every token but the padding for impossible."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0] + [-torch.inf] * 257))

    def forward(self, input_ids: Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, 258))


def test_length_speaks_against_a_choice_unless_it_is_taken_out() -> None:
    # Every token costs the same, the space before a choice too.
    scores = score_questions(Constant(0.0), [question("q", "long choice", "short", answer=0)], 8)
    assert scores == Scores(1, {"acc": (0.0,), "acc_norm": (1.0,)})


def test_a_lost_model_chooses_the_first() -> None:
    asked = [question("q", "a", "b", answer=0), question("q", "a", "b", answer=1)]
    scores = score_questions(Constant(float("nan")), asked, 8)
    assert scores.each["acc"] == (1.0, 0.0)


def test_an_overflowing_model_chooses_the_first_whatever_the_lengths() -> None:
    asked = [question("q", "a", "longer", answer=0), question("q", "longer", "a", answer=0)]
    scores = score_questions(Overflowing(), asked, 8)
    assert scores.each == {"acc": (1.0, 1.0), "acc_norm": (1.0, 1.0)}

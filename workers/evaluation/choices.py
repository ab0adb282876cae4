"""Multiple choice: the model's answer is the choice to which it assigns the highest likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch

from workers.evaluation.problems import Choice, Question
from workers.evaluation.scores import Scores
from workers.evaluation.text import input_device, right_padded, token_log_likelihoods


def score_questions(model: Any, questions: Sequence[Question], batch_size: int) -> Scores:
    """Score by the log-likelihood of a whole choice (`acc`), and per character (`acc_norm`).

    `batch_size` sequences are read at a time. If the model's arithmetic overflows, the first choice
    is its answer.
    """
    choices = [choice for question in questions for choice in question.choices]
    likelihoods = _log_likelihoods(model, choices, batch_size)
    plain, normalised = [], []
    start = 0
    for question in questions:
        end = start + len(question.choices)
        sums = likelihoods[start:end]
        lengths = [choice.characters for choice in question.choices]
        per_character = [total / length for total, length in zip(sums, lengths, strict=True)]
        plain.append(float(sums.index(max(sums)) == question.answer))
        normalised.append(float(per_character.index(max(per_character)) == question.answer))
        start = end
    return Scores(len(questions), {"acc": tuple(plain), "acc_norm": tuple(normalised)})


@torch.inference_mode()
def _log_likelihoods(model: Any, choices: Sequence[Choice], batch_size: int) -> list[float]:
    """The log-likelihood of each choice given its question, in nats."""
    device = input_device(model)
    found = [0.0] * len(choices)
    by_length = sorted(range(len(choices)), key=lambda number: len(choices[number].tokens))
    for start in range(0, len(choices), batch_size):
        numbers = by_length[start : start + batch_size]
        input_ids = right_padded([choices[number].tokens for number in numbers])
        logits = model(input_ids=input_ids.to(device), use_cache=False).logits
        for row, number in enumerate(numbers):
            tokens, scored = choices[number].tokens, choices[number].scored
            predicting = logits[row, len(tokens) - scored - 1 : len(tokens) - 1]
            targets = torch.tensor(tokens[-scored:], device=device)
            likelihoods, _ = token_log_likelihoods(predicting, targets)
            found[number] = float(likelihoods.sum().nan_to_num(nan=-inf, posinf=-inf, neginf=-inf))
    return found

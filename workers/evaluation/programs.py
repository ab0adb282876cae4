"""Pass@1: Python functions that a model completes greedily, judged by their tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from service.domain.spec.evaluation import PassAt1
from workers.evaluation.generation import end_tokens, greedy, written_text
from workers.evaluation.problems import Function
from workers.evaluation.sandbox import Limits, passes
from workers.evaluation.scores import Scores
from workers.evaluation.text import input_device
from workers.text.sequences import Tokenizer

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""The stop sequences of HumanEval's authors: a completion ends before the first one."""

TAIL_TOKENS = 8
"""The number of last tokens in which a stop sequence is sought; none is longer."""


def score_functions(
    model: Any, tokenizer: Tokenizer, functions: Sequence[Function], task: PassAt1
) -> Scores:
    """Score `pass@1`: whether the greedy completion passes the tests in the sandbox.

    Raises SandboxUnavailable.
    """
    limits = Limits(task.timeout_seconds, task.memory_bytes)
    completions = complete(model, tokenizer, functions, task.max_new_tokens)
    verdicts = [
        float(passes(function.program(completion), limits))
        for function, completion in zip(functions, completions, strict=True)
    ]
    return Scores(len(functions), {"pass@1": tuple(verdicts)})


@torch.inference_mode()
def complete(
    model: Any, tokenizer: Tokenizer, functions: Sequence[Function], max_new_tokens: int
) -> list[str]:
    """The model's greedy completion of each prompt, up to the first stop sequence."""
    device = input_device(model)
    input_ids, attention_mask = _left_padded([function.tokens for function in functions])
    width = input_ids.shape[1]
    ends = end_tokens(model, tokenizer)
    written = model.generate(
        input_ids.to(device),
        attention_mask=attention_mask.to(device),
        generation_config=greedy(max_new_tokens, ends),
        stopping_criteria=StoppingCriteriaList([_Stopped(tokenizer, width)]),
    )
    return [
        _completion(tokenizer, function.tokens, tokens, ends)
        for function, tokens in zip(functions, written[:, width:].tolist(), strict=True)
    ]


class _Stopped(StoppingCriteria):  # type: ignore[misc]
    """Stops each sequence whose last tokens contain a stop sequence."""

    def __init__(self, tokenizer: Tokenizer, prompt_width: int) -> None:
        self._tokenizer = tokenizer
        self._prompt_width = prompt_width

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:  # noqa: ARG002
        tails = self._tokenizer.batch_decode(input_ids[:, self._prompt_width :][:, -TAIL_TOKENS:])
        stopped = [any(stop in tail for stop in STOPS) for tail in tails]
        return torch.tensor(stopped, device=input_ids.device)


def _completion(
    tokenizer: Tokenizer, prompt: Sequence[int], written: list[int], ends: Sequence[int]
) -> str:
    """The text before the first end token and the first stop sequence."""
    text = written_text(tokenizer, prompt, written, ends)
    cuts = [position for stop in STOPS if (position := text.find(stop)) >= 0]
    return text[: min(cuts, default=len(text))]


def _left_padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both (batch, longest), with zeros before shorter sequences."""
    longest = max(map(len, sequences))
    padded = [[0] * (longest - len(tokens)) + [*tokens] for tokens in sequences]
    mask = [[0] * (longest - len(tokens)) + [1] * len(tokens) for tokens in sequences]
    return torch.tensor(padded), torch.tensor(mask)

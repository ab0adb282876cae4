"""Greedy completions are the same in batches as alone, cut at stops, and judged by tests."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from service.domain.spec.evaluation import PassAt1
from tests.fixtures.models import byte_tokenizer, tiny_llama_config, tiny_model
from workers.evaluation.problems import Function
from workers.evaluation.programs import complete, score_functions

TOKENIZER = byte_tokenizer(adds_bos=False)
END = TOKENIZER.eos_token_id
TASK = PassAt1.model_validate(
    {"kind": "pass_at_1", "name": "t", "data": {"source": "local", "path": "/p"}}
)


def function(prompt: str, test: str = "def check(f):\n    assert f(2) == 4") -> Function:
    return Function(prompt, TOKENIZER(prompt)["input_ids"], test, "f")


class Author(nn.Module):
    """Writes what it is told to, each prompt its own text; one token a step."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.generation_config = SimpleNamespace(eos_token_id=END)
        self._texts = [[*TOKENIZER(text)["input_ids"], END] for text in texts]
        self.steps = 0

    def generate(
        self, input_ids: Tensor, *, stopping_criteria: Any, generation_config: Any, **_: Any
    ) -> Tensor:
        done = [False] * len(input_ids)
        for step in range(generation_config.max_new_tokens):
            column = [
                [generation_config.pad_token_id if done[row] else text[step]]
                for row, text in enumerate(self._texts)
            ]
            input_ids = torch.cat([input_ids, torch.tensor(column)], 1)
            stopped = stopping_criteria[0](input_ids, None)
            done = [
                d or bool(s) or c == [END] for d, s, c in zip(done, stopped, column, strict=True)
            ]
            self.steps += 1
            if all(done):
                break
        return input_ids


def test_a_completion_ends_at_the_first_stop_or_end() -> None:
    author = Author("    return x\n\ndef g():\n    pass", "    pass", "  a\n# b\nclass C")
    written = complete(author, TOKENIZER, [function("def f(x):\n")] * 3, 100)
    assert written == ["    return x\n", "    pass", "  a"]
    assert author.steps < 25


def test_the_model_is_asked_to_be_greedy() -> None:
    seen: dict[str, Any] = {}

    class Recorder(Author):
        def generate(self, input_ids: Tensor, **options: Any) -> Tensor:
            seen.update(options)
            return super().generate(input_ids, **options)

    complete(Recorder("x"), TOKENIZER, [function("def f():")], 3)
    config = seen["generation_config"]
    assert (config.do_sample, config.num_beams, config.repetition_penalty) == (False, 1, 1.0)
    assert config.max_new_tokens == 3


def alone(model: Any, prompt: Sequence[int], count: int) -> list[int]:
    """Greedy decoding without cache, batch or padding."""
    tokens = list(prompt)
    for _ in range(count):
        logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


def test_padding_on_the_left_changes_nothing() -> None:
    model = tiny_model(tiny_llama_config())
    model.generation_config.eos_token_id = None
    no_end = byte_tokenizer(adds_bos=False)
    no_end.eos_token = None
    prompts = [function("def f(x):\n"), function("a"), function("def longer(name):\n    '''x'''\n")]
    written = complete(model, no_end, prompts, 6)
    for each, text in zip(prompts, written, strict=True):
        tokens = [*each.tokens, *alone(model, each.tokens, 6)]
        expected = no_end.decode(tokens, skip_special_tokens=True)[len(each.prompt) :]
        assert text == expected.split("\n#")[0]


def test_what_passes_its_tests_counts() -> None:
    author = Author("    return 2 * x\n", "    return 3 * x\n", "    return (")
    scores = score_functions(author, TOKENIZER, [function("def f(x):\n")] * 3, TASK)
    assert scores.problems == 3
    assert scores.each == {"pass@1": (1.0, 0.0, 0.0)}


@pytest.mark.parametrize("ends", [None, 1, [1, 0]], ids=["tokenizer's", "one", "several"])
def test_the_tokens_that_end_a_text_are_the_models(ends: Any) -> None:
    author = Author("    pass")
    author.generation_config = SimpleNamespace(eos_token_id=ends)
    assert complete(author, TOKENIZER, [function("def f():\n")], 20) == ["    pass"]

"""Models continue prompts greedily, one by one, and are asked for no more than they can read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from service.errors import InvalidParameter
from tests.fixtures.models import byte_tokenizer, tiny_llama_config, tiny_model
from workers.evaluation.generation import check_prompts, continuations

PROMPTS = ("def f(x):", "a")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer(adds_bos=False)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(tiny_llama_config()).eval()


def test_each_token_is_the_most_likely_one(model: Any, tokenizer: Any) -> None:
    model.generation_config.eos_token_id = None
    found = continuations(model, tokenizer, PROMPTS, 5)
    for prompt, text in zip(PROMPTS, found, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        length = len(ids)
        for _ in range(5):
            ids = [*ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())]
        before = tokenizer.decode(ids[:length], skip_special_tokens=True)
        assert before + text == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_text_ends_where_the_model_ends_it(model: Any, tokenizer: Any) -> None:
    ids = tokenizer(PROMPTS[0])["input_ids"]
    model.generation_config.eos_token_id = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    assert continuations(model, tokenizer, PROMPTS[:1], 5) == [""]


def test_a_prompt_leaves_room_for_what_is_wanted(tokenizer: Any) -> None:
    length = len(tokenizer(PROMPTS[0])["input_ids"])
    check_prompts(PROMPTS, 5, tokenizer, length + 5)
    check_prompts(PROMPTS, 5, tokenizer, None)
    with pytest.raises(InvalidParameter, match="The prompt has") as refusal:
        check_prompts(("a", PROMPTS[0]), 5, tokenizer, length + 4)
    assert refusal.value.param == "evaluation.prompts.1"

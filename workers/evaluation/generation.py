"""Greedy generation of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from service.errors import InvalidParameter
from workers.evaluation.text import input_device
from workers.text.sequences import Tokenizer


def check_prompts(
    prompts: Sequence[str], most: int, tokenizer: Tokenizer, longest: int | None
) -> None:
    """Raise InvalidParameter for a prompt that leaves the model no room for `most` tokens.

    `longest` is how many tokens it can read; None if nobody knows.
    """
    for number, prompt in enumerate(prompts):
        length = len(_tokens(tokenizer, prompt))
        if longest is not None and length + most > longest:
            raise InvalidParameter(
                f"The prompt has {length} tokens and {most} more are wanted; the model reads "
                f"{longest} at most.",
                param=f"evaluation.prompts.{number}",
            )


@torch.inference_mode()
def continuations(model: Any, tokenizer: Tokenizer, prompts: Sequence[str], most: int) -> list[str]:
    """What the model writes after each prompt, greedily: at most so many tokens.

    A prompt is the beginning of a text: no template for chats is put around it.
    """
    ends, found = end_tokens(model, tokenizer), []
    for prompt in prompts:  # one after the other: padding could change what is written
        tokens = _tokens(tokenizer, prompt)
        ids = torch.tensor([tokens], device=input_device(model))
        written = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_config=greedy(most, ends),
        )[0, len(tokens) :].tolist()
        found.append(written_text(tokenizer, tokens, written, ends))
    return found


def greedy(most: int, ends: Sequence[int]) -> GenerationConfig:
    """The most likely token each time, until one of `ends` or for `most` tokens."""
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=most,
        eos_token_id=[*ends] or None,
        pad_token_id=ends[0] if ends else 0,
    )


def written_text(
    tokenizer: Tokenizer, prompt: Sequence[int], written: Sequence[int], ends: Sequence[int]
) -> str:
    """The text before the first end token.

    It is decoded together with its prompt, because some tokenizers strip leading blanks.
    """
    length = next((i for i, token in enumerate(written) if token in ends), len(written))
    before, whole = (
        tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for tokens in ([*prompt], [*prompt, *written[:length]])
    )
    return str(whole[len(before) :])


def end_tokens(model: Any, tokenizer: Tokenizer) -> list[int]:
    """The end tokens of the model's generation settings, or else of the tokenizer."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


def _tokens(tokenizer: Tokenizer, prompt: str) -> list[int]:
    ids: list[int] = tokenizer(prompt)["input_ids"]
    return ids

"""Measures how fast a model decodes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch

from workers.evaluation.text import input_device

WARM_UP_TOKENS = 4
PROMPT_TOKENS = 16


@torch.no_grad()
def decode_speed(model: Any, prompt: Sequence[int], tokens: int) -> float:
    """Tokens per second of greedy decoding with batch 1 and a cache, prompt processing included."""
    input_ids = torch.tensor([prompt[:PROMPT_TOKENS]], device=input_device(model))

    def generate(count: int) -> None:
        model.generate(
            input_ids,
            attention_mask=torch.ones_like(input_ids),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
        )
        if input_ids.is_cuda:
            torch.cuda.synchronize()

    generate(WARM_UP_TOKENS)
    start = time.perf_counter()
    generate(tokens)
    return tokens / (time.perf_counter() - start)

"""The decoding speed is measured over the requested number of tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tests.fixtures.models import tiny_llama_config, tiny_model
from workers.evaluation.speed import PROMPT_TOKENS, WARM_UP_TOKENS, decode_speed


def test_decoding_generates_exactly_as_many_tokens_as_it_says() -> None:
    counts: list[tuple[int, int]] = []

    class Recorder(nn.Linear):
        def generate(self, input_ids: Tensor, **options: Any) -> None:
            assert not options["do_sample"]
            assert options["min_new_tokens"] == options["max_new_tokens"]
            counts.append((input_ids.shape[1], options["max_new_tokens"]))

    assert decode_speed(Recorder(1, 1), list(range(40)), 32) > 0
    assert counts == [(PROMPT_TOKENS, WARM_UP_TOKENS), (PROMPT_TOKENS, 32)]


def test_a_real_model_decodes_from_a_short_prompt() -> None:
    model = tiny_model(tiny_llama_config())
    assert decode_speed(model, [5, 6], 3) > 0

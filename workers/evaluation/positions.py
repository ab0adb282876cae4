"""How many tokens a model can read, and whether a job asks for more."""

from __future__ import annotations

from typing import Any

from service.domain.spec.job import JobSpec
from service.errors import InvalidParameter
from workers.evaluation.speed import PROMPT_TOKENS


def positions(config: Any) -> int | None:
    """How many tokens the model can read, where its configuration says so."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def check_positions(spec: JobSpec, config: Any) -> None:
    """Raise InvalidParameter for sequences that are longer than the model can read."""
    longest = positions(config)
    lengths = {
        "calibration.sequence_length": spec.calibration.sequence_length,
        "evaluation.decode_tokens": spec.evaluation.decode_tokens + PROMPT_TOKENS,
    }
    for param, length in lengths.items():
        if longest is not None and length > longest:
            raise InvalidParameter(
                f"The model reads {longest} tokens at most; this asks for {length}.", param=param
            )

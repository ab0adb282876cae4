"""Tells users what a job uses of their texts, and where that is less than they asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from service.domain.spec.evaluation import HELD_OUT
from workers.attempt.progress import Progress
from workers.text.texts import RECOVERY, Texts, Usage

MAX_NAMES_IN_EVENT = 20
SKIPPED = "texts.skipped"
SHORT = "texts.short"


@dataclass(frozen=True)
class TextWarning:
    """A warning, with the data of its event."""

    type: str
    message: str
    data: dict[str, Any]


def note_texts(texts: Texts, progress: Progress, tenant: str) -> None:
    """Record the use of every text, the warnings, and the tokens of uploaded datasets."""
    progress.note(
        "texts.used",
        "; ".join(map(_sentence, texts.usage)) + ".",
        {"texts": [asdict(usage) for usage in texts.usage]},
    )
    for warning in text_warnings(texts):
        progress.note(warning.type, warning.message, warning.data, is_warning=True)
    for dataset_id, tokens in texts.tokens_of_datasets.items():
        progress.count_tokens(tenant, dataset_id, tokens)


def text_warnings(texts: Texts) -> Iterator[TextWarning]:
    """What users may not expect of their texts."""
    if texts.skipped_files:
        yield TextWarning(
            SKIPPED,
            f"{len(texts.skipped_files)} files are not text and were skipped.",
            {"files": texts.skipped_files[:MAX_NAMES_IN_EVENT]},
        )
    for usage in texts.usage:
        if usage.sequences >= usage.asked:
            continue
        if usage.text == RECOVERY:
            yield TextWarning(
                SHORT,
                f"Recovery trains on {usage.sequences} sequences, not the {usage.asked} asked for: "
                "calibration.data has no more. Add text, or set recovery.epochs higher.",
                asdict(usage),
            )
        else:
            of = "calibration.data" if usage.text == HELD_OUT else f"the text '{usage.text}'"
            yield TextWarning(
                SHORT,
                f"Perplexity on '{usage.text}' is measured on {usage.sequences} sequences, not the "
                f"{usage.asked} asked for: {of} has no more. Add text, or ask for fewer.",
                asdict(usage),
            )


def _sentence(usage: Usage) -> str:
    skipped = ", ".join(f"{count} {reason}" for reason, count in usage.skipped.items())
    return (
        f"{usage.text}: {usage.tokens:,} tokens in {usage.sequences} sequences from "
        f"{usage.drawn_from} of {usage.documents} documents"
        f"{f' (skipped: {skipped})' if skipped else ''}"
    )

"""SentencePiece's BPE, as in Llama 2 and Mistral, for a GGUF file.

llama.cpp joins those neighbours first whose joint token has the highest score. tokenizers has a
list of pairs instead, in the order in which it joins them. The two do the same if all pairs of a
token follow one another in the list, and no pair is missing. Then scores follow from the places.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import groupby
from typing import Any

SPACE = "▁"

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
"""The tokens of bytes for which there is no other."""


def is_sentencepiece(definition: Mapping[str, Any]) -> bool:
    """Whether a tokenizer, as its JSON defines it, is a BPE of SentencePiece's kind."""
    model = definition["model"]
    return model["type"] == "BPE" and bool(model["byte_fallback"])


def token_scores(model: Mapping[str, Any], added: Collection[str]) -> dict[str, float] | None:
    """The scores of the tokens that are made of others; None if there are none that do the same.

    `added` are the tokens that the tokenizer finds in a text before it splits it.
    """
    vocab = model["vocab"].keys() - added
    pairs = [
        (left, right)
        for left, right in model["merges"]
        if not {left, right, left + right}.intersection(added)
    ]
    if model["ignore_merges"] or not vocab.issuperset(BYTES):
        return None
    joined = [token for token, _ in groupby(left + right for left, right in pairs)]
    places = {token: -float(place) for place, token in enumerate(joined)}
    if len(places) < len(joined) or set(pairs) != set(_all_pairs(vocab)):
        return None
    return places


def _all_pairs(vocab: Collection[str]) -> Iterator[tuple[str, str]]:
    """All pairs of tokens that make a token."""
    for token in vocab:
        for place in range(1, len(token)):
            left, right = token[:place], token[place:]
            if left in vocab and right in vocab:
                yield left, right


def space_prefix(definition: Mapping[str, Any]) -> bool | None:
    """Whether the tokenizer puts a space before a text; None if it prepares texts otherwise."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepended = {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": SPACE}, replace],
    }
    normalizer, splitter = definition["normalizer"], definition["pre_tokenizer"]
    if splitter is None and normalizer in (replace, prepended):
        return bool(normalizer == prepended)
    match normalizer, splitter:
        case None, {
            "type": "Metaspace",
            "replacement": "▁",
            "split": False,
            "prepend_scheme": when,
        }:
            return bool(when != "never")
    return None

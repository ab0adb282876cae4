"""A tokenizer as a GGUF file describes it: its tokens, merges and special tokens.

For byte-level tokenizers llama.cpp splits a text into words by a pattern of its own, which the file
names. So only tokenizers whose pattern llama.cpp has are written. Others would work, and give other
tokens. SentencePiece's BPE needs no pattern; see `workers.artifact.gguf_sentencepiece`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from workers.artifact.expand import CannotExpand
from workers.artifact.gguf_sentencepiece import (
    BYTES,
    is_sentencepiece,
    space_prefix,
    token_scores,
)
from workers.model.tokenizer import load_tokenizer

SAMPLE = "a"
"""A text that shows which tokens are put around every text."""

_GPT2 = ("ByteLevel", True)
_BYTES = ("ByteLevel", False)

_NAMES: Mapping[tuple[tuple[Any, ...], bool], str] = {
    ((_GPT2,), False): "gpt-2",
    ((("Digits", True), _GPT2), False): "smollm",
    **{
        ((("Split", GGUF_PRE_TOKENIZER_SPLITS[name], "Isolated", False), _BYTES), whole): name
        for name, whole in (
            ("llama-bpe", True),
            ("smaug-bpe", False),
            ("tekken", True),
            ("qwen2", False),
        )
    },
}
"""llama.cpp's names, by the steps that split a text into words, and by whether a word that is a
token stays whole whatever the merges say."""

_NORMALIZED = "qwen2"
"""The name for which llama.cpp's users accept that it does not normalize texts to NFC."""


@dataclass(frozen=True)
class Vocabulary:
    """What the file says of a tokenizer."""

    model: str  # "gpt2" for byte-level BPE, "llama" for SentencePiece's
    split: str  # llama.cpp's name for the way in which texts are split into words
    tokens: list[str]
    kinds: list[TokenType]
    merges: list[str]  # of byte-level BPE
    scores: list[float]  # of SentencePiece's
    space_prefix: bool  # whether a text gets a space before it
    special: Mapping[str, int]  # ids of bos, eos, unk and pad, those that there are
    adds_bos: bool
    adds_eos: bool
    chat_template: Any  # a text, several with their names, or None
    notes: list[str]  # what llama.cpp does otherwise

    def add_to(self, writer: GGUFWriter) -> None:
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.split)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        if self.model == "llama":
            writer.add_token_scores(self.scores)
        else:
            writer.add_token_merges(self.merges)
        writer.add_add_space_prefix(self.space_prefix)
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        if self.chat_template:
            writer.add_chat_template(self.chat_template)


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The vocabulary of a model's tokenizer, filled up to `size` tokens.

    Raises CannotExpand if llama.cpp has no such tokenizer, and ModelInvalid if it cannot be read.
    """
    tokenizer = load_tokenizer(folder)
    if not tokenizer.is_fast:
        raise _refusal(f"is a {type(tokenizer).__name__}, which has no tokenizer.json")
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    by_scores = is_sentencepiece(definition)
    merging = _by_scores if by_scores else _by_merges
    tokens, kinds = _tokens(tokenizer, size, by_scores)
    adds_bos, adds_eos = _frame(tokenizer)
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad")}
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    return Vocabulary(
        tokens=tokens,
        kinds=kinds,
        **merging(definition, tokens),
        special={name: number for name, number in ids.items() if number is not None},
        adds_bos=adds_bos,
        adds_eos=adds_eos,
        chat_template=template,
    )


def _by_merges(definition: Mapping[str, Any], _tokens: list[str]) -> dict[str, Any]:
    """What the file says of a byte-level BPE."""
    split, merges = _split_name(definition), definition["model"]["merges"]
    if not merges:
        raise _refusal("has no merges")
    normalizes = definition["normalizer"] is not None
    return {
        "model": "gpt2",
        "split": split,
        "merges": [" ".join(pair) for pair in merges],
        "scores": [],
        "space_prefix": False,
        "notes": ["The tokenizer normalizes texts to NFC. llama.cpp does not."] * normalizes,
    }


def _by_scores(definition: Mapping[str, Any], tokens: list[str]) -> dict[str, Any]:
    """What the file says of a BPE of SentencePiece's kind."""
    added = {token["content"] for token in definition["added_tokens"]}
    scores, prefix = token_scores(definition["model"], added), space_prefix(definition)
    if scores is None:
        raise _refusal("joins tokens in an order for which there are no scores")
    if prefix is None:
        raise _refusal("prepares texts in a way that SentencePiece does not")
    note = (
        "llama.cpp puts a space before a text that begins with a space or follows a special token. "
        "The tokenizer may not."
    )
    return {
        "model": "llama",
        "split": "default",
        "merges": [],
        "scores": [scores.get(token, 0.0) for token in tokens],
        "space_prefix": prefix,
        "notes": [note] * (prefix and definition["normalizer"] is None),
    }


def _split_name(definition: Mapping[str, Any]) -> str:
    """llama.cpp's name for the way in which a tokenizer, as its JSON defines it, splits texts."""
    model = definition["model"]
    if model["type"] != "BPE":
        raise _refusal(f"is of the kind {model['type']}, not BPE")
    if model["continuing_subword_prefix"] or model["end_of_word_suffix"]:
        raise _refusal("marks the parts of words")
    outer = definition["pre_tokenizer"] or {"type": "none"}
    steps = tuple(map(_step, outer.get("pretokenizers", [outer])))
    name = _NAMES.get((steps, bool(model["ignore_merges"])))
    if name is None:
        raise _refusal(f"splits texts into words by {json.dumps(outer, ensure_ascii=False)}")
    normalizer = definition["normalizer"]
    if normalizer is not None and (name, normalizer["type"]) != (_NORMALIZED, "NFC"):
        raise _refusal(f"normalizes texts by {normalizer['type']}")
    return name


def _step(step: Mapping[str, Any]) -> tuple[Any, ...]:
    """A step of splitting, without what has no influence on the tokens."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": by_words}:
            return "ByteLevel", by_words
        case {"type": "Digits", "individual_digits": single}:
            return "Digits", single
        case {"type": "Split", "pattern": {"Regex": pattern}}:
            return "Split", pattern, step["behavior"], step["invert"]
    return (step["type"],)


def _tokens(tokenizer: Any, size: int, by_scores: bool) -> tuple[list[str], list[TokenType]]:
    """The tokens by their ids and their kinds; ids that no token has are unused ones."""
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    if max(by_id) >= size:
        raise _refusal(f"has the id {max(by_id)}, and the model {size} embeddings")
    added = tokenizer.added_tokens_decoder

    def kind(number: int) -> TokenType:
        if number not in by_id:
            return TokenType.UNUSED
        if by_scores and by_id[number] in BYTES:
            return TokenType.BYTE
        if by_scores and number == tokenizer.unk_token_id:
            return TokenType.UNKNOWN
        if number not in added:
            return TokenType.NORMAL
        return TokenType.CONTROL if added[number].special else TokenType.USER_DEFINED

    tokens = [by_id.get(number, f"[PAD{number}]") for number in range(size)]
    return tokens, [kind(number) for number in range(size)]


def _frame(tokenizer: Any) -> tuple[bool, bool]:
    """Whether the tokenizer puts BOS before a text, and EOS behind it."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    inner: list[int] = tokenizer(SAMPLE, add_special_tokens=False).input_ids
    framed: list[int] = tokenizer(SAMPLE).input_ids
    for adds_bos, adds_eos in product((False, True), repeat=2):
        if [bos] * adds_bos + inner + [eos] * adds_eos == framed:
            return adds_bos, adds_eos
    raise _refusal("puts other tokens than BOS and EOS around a text")


def _refusal(what: str) -> CannotExpand:
    return CannotExpand(
        f"the tokenizer {what}, for which no GGUF file can be written yet: leave out --gguf, and "
        "convert the folder with llama.cpp's convert_hf_to_gguf.py"
    )

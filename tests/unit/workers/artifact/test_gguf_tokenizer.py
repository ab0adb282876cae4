"""Tokenizers are written as llama.cpp knows them, or refused. Tests of small ones take 20 ms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader, GGUFWriter
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.tokenization_utils_base import generate_merges

from bench import demo_data
from tests.fixtures.models import BOS, EOS, byte_tokenizer, trained_tokenizer
from workers.artifact.expand import CannotExpand
from workers.artifact.gguf_sentencepiece import BYTES, space_prefix, token_scores
from workers.artifact.gguf_tokenizer import Vocabulary, read_vocabulary

SIZE = 400
BY_WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False)
TEXT = "She'll've seen 1234567 of  them,\n\n  hasn't SHE'D? naïve – 你好\t3.14 <s>x</s>\n"


def by(pattern: str) -> Any:
    """The words are what the pattern matches."""
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def read(folder: Path, tokenizer: Any) -> Vocabulary:
    tokenizer.save_pretrained(folder)
    return read_vocabulary(folder, SIZE)


def reread(folder: Path, vocabulary: Vocabulary) -> Any:
    """The tokenizer as transformers reads it from a GGUF file."""
    writer = GGUFWriter(folder / "a.gguf", "llama")
    vocabulary.add_to(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return AutoTokenizer.from_pretrained(folder, gguf_file="a.gguf")


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize(
    ("name", "words", "ignores_merges"),
    [
        ("gpt-2", BY_WORDS, False),
        ("llama-bpe", by(GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]), True),
        ("smaug-bpe", by(GGUF_PRE_TOKENIZER_SPLITS["llama-bpe"]), False),
        ("tekken", by(GGUF_PRE_TOKENIZER_SPLITS["tekken"]), True),
        ("qwen2", by(GGUF_PRE_TOKENIZER_SPLITS["qwen2"]), False),
    ],
)
def test_the_file_gives_the_same_tokens(
    tmp_path: Path, name: str, words: Any, ignores_merges: bool, adds_bos: bool
) -> None:
    tokenizer = trained_tokenizer(words, size=SIZE, ignore_merges=ignores_merges, adds_bos=adds_bos)
    tokenizer.chat_template = "{{ messages }}"
    vocabulary = read(tmp_path / "model", tokenizer)
    assert vocabulary.split == name
    again = reread(tmp_path, vocabulary)
    assert again.get_vocab().items() >= tokenizer.get_vocab().items()  # and a class's own
    assert again(TEXT).input_ids == tokenizer(TEXT).input_ids
    assert (again.bos_token_id, again.eos_token_id) == (0, 1)
    assert again.chat_template == "{{ messages }}"


def test_smollm2_is_described_as_llama_cpp_describes_it(tmp_path: Path) -> None:
    """llama.cpp's converter has made the file. 4 seconds, most of which the library reads it."""
    fields = GGUFReader(demo_data.model_file()).fields
    theirs = {
        key.removeprefix("tokenizer.").removeprefix("ggml."): field.contents()
        for key, field in fields.items()
        if key.startswith("tokenizer.")
    }
    tokens, merges = theirs["tokens"], [tuple(merge.split(" ")) for merge in theirs["merges"]]
    vocab = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), BY_WORDS]
    )
    special = [token for token, kind in zip(tokens, theirs["token_type"], strict=True) if kind == 3]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[1],
        eos_token=tokens[2],
        unk_token=tokens[0],
        pad_token=tokens[2],
        additional_special_tokens=special,
        chat_template=theirs["chat_template"],
    ).save_pretrained(tmp_path)
    ours = read_vocabulary(tmp_path, len(tokens))
    assert (theirs["model"], ours.split) == ("gpt2", theirs["pre"])
    assert ours.tokens == tokens
    assert ours.kinds == theirs["token_type"]
    assert ours.merges == theirs["merges"]
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    assert ours.special == {name: theirs[f"{key}_token_id"] for name, key in names.items()}
    assert ours.adds_bos == theirs["add_bos_token"]
    assert ours.chat_template == theirs["chat_template"]


def sentencepiece(*, prefix: bool = True) -> Any:
    """A tokenizer of SentencePiece's kind whose pieces are those of a trained one."""
    trained = trained_tokenizer(BY_WORDS, size=SIZE).get_vocab()
    spelled = [piece.replace("Ġ", "▁") for piece in sorted(trained, key=trained.__getitem__)]
    pieces = [piece for piece in spelled[2:] if piece.replace("▁", "").isascii()]
    vocab = {piece: place for place, piece in enumerate(["<unk>", BOS, EOS, *BYTES, *pieces])}
    return LlamaTokenizer(vocab=vocab, merges=generate_merges(vocab), add_prefix_space=prefix)


def test_sentencepiece_gives_the_same_tokens(tmp_path: Path) -> None:
    """transformers makes the pairs of the scores anew."""
    tokenizer = sentencepiece()
    tokenizer.save_pretrained(tmp_path / "model")
    vocabulary = read_vocabulary(tmp_path / "model", len(tokenizer))
    assert (vocabulary.model, vocabulary.split) == ("llama", "default")
    assert [kind.name for kind in vocabulary.kinds[:4]] == ["UNKNOWN", "CONTROL", "CONTROL", "BYTE"]
    assert vocabulary.kinds[3 + 256].name == "NORMAL"
    again = reread(tmp_path, vocabulary)
    text = f"{TEXT}def   long_word_like_this(self):\n        return textwrapper.wrap(text)\n"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert again(text, add_special_tokens=False).input_ids == ids
    assert max(ids) > 3 + 256 + 100  # longer pieces are found


def test_the_space_before_a_text() -> None:
    legacy, metaspace = sentencepiece(), sentencepiece()
    replace = normalizers.Replace(" ", "▁")
    legacy.backend_tokenizer.pre_tokenizer = None
    legacy.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    bare = sentencepiece(prefix=False)

    def definition(tokenizer: Any) -> Any:
        return json.loads(tokenizer.backend_tokenizer.to_str())

    assert [space_prefix(definition(each)) for each in (legacy, metaspace, bare)] == [
        True, True, False,
    ]  # fmt: skip
    legacy.backend_tokenizer.normalizer = replace
    assert space_prefix(definition(legacy)) is False
    legacy.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), replace])
    assert space_prefix(definition(legacy)) is None


def test_pairs_in_another_order_have_no_scores() -> None:
    vocab = {piece: place for place, piece in enumerate([*BYTES, *"abc", "ab", "bc", "abc"])}
    pairs = [("a", "b"), ("b", "c"), ("ab", "c"), ("a", "bc")]

    def scores(merges: list[tuple[str, str]]) -> dict[str, float] | None:
        return token_scores({"vocab": vocab, "merges": merges, "ignore_merges": False}, set())

    assert scores(pairs) == {"ab": 0, "bc": -1, "abc": -2}
    assert scores(pairs[:-1]) is None  # llama.cpp would join a and bc
    assert scores([pairs[0], pairs[2], pairs[1], pairs[3]]) is None  # abc has no single place


def test_kinds_of_tokens(tmp_path: Path) -> None:
    tokenizer = trained_tokenizer(BY_WORDS, size=300)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    vocabulary = read(tmp_path, tokenizer)
    number = tokenizer.convert_tokens_to_ids("<think>")
    assert [vocabulary.kinds[each].name for each in (0, 2, number, number + 1)] == [
        "CONTROL", "NORMAL", "USER_DEFINED", "UNUSED",
    ]  # fmt: skip
    assert vocabulary.tokens[number : number + 2] == ["<think>", f"[PAD{number + 1}]"]
    assert len(vocabulary.tokens) == len(vocabulary.kinds) == SIZE


def test_named_templates_are_kept_apart(tmp_path: Path) -> None:
    tokenizer = trained_tokenizer(BY_WORDS, size=300)
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    assert read(tmp_path, tokenizer).chat_template == [
        {"name": "default", "template": "a"},
        {"name": "tool_use", "template": "b"},
    ]


def changed(**parts: Any) -> Any:
    tokenizer = trained_tokenizer(parts.pop("words", BY_WORDS), size=300)
    for name, value in parts.items():
        setattr(tokenizer.backend_tokenizer, name, value)
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "why"),
    [
        (
            changed(model=models.BPE(vocab={"a": 0}, merges=[], byte_fallback=True)),
            "joins tokens in an order for which there are no scores",
        ),
        (changed(model=models.WordLevel(vocab={"a": 0})), "is of the kind WordLevel, not BPE"),
        (byte_tokenizer(adds_bos=False), "has no merges"),
        (changed(words=by(r"\p{L}+|\p{N}")), r"splits texts into words by "),
        (changed(words=pre_tokenizers.ByteLevel(add_prefix_space=True)), "splits texts into words"),
        (changed(normalizer=normalizers.Lowercase()), "normalizes texts by Lowercase"),
        (changed(normalizer=normalizers.NFC()), "normalizes texts by NFC"),
        (
            changed(
                post_processor=processors.TemplateProcessing(
                    single="a $A", special_tokens=[("a", 70)]
                )
            ),
            "puts other tokens than BOS and EOS around a text",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_tokenizers_are_refused(tmp_path: Path, tokenizer: Any, why: str) -> None:
    with pytest.raises(CannotExpand) as caught:
        read(tmp_path, tokenizer)
    assert f"the tokenizer {why}" in caught.value.detail
    assert "leave out --gguf" in caught.value.detail


def test_more_tokens_than_embeddings_are_refused(tmp_path: Path) -> None:
    trained_tokenizer(BY_WORDS, size=300).save_pretrained(tmp_path)
    with pytest.raises(CannotExpand, match="has the id 299, and the model 299 embeddings"):
        read_vocabulary(tmp_path, 299)

"""The two sides share no text, sequences begin as the tokenizer begins them, all is repeatable."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import CalibrationTooShort
from service.inputs.texts.documents import Document
from tests.fixtures.models import byte_tokenizer
from workers.text.sequences import (
    MIN_DOCUMENTS,
    MIN_SEQUENCE_TOKENS,
    calibration_sequences,
    evaluation_sequences,
    in_padded_batches,
    sequence_prefix,
    split_documents,
)

PLAIN = byte_tokenizer(adds_bos=False)
WITH_BOS = byte_tokenizer(adds_bos=True)
BOS, EOS = PLAIN.bos_token_id, PLAIN.eos_token_id

TOKENIZERS = pytest.mark.parametrize(
    ("tokenizer", "prefix"), [(PLAIN, []), (WITH_BOS, [BOS])], ids=["plain", "with BOS"]
)
CUTS = pytest.mark.parametrize(
    "cut", [calibration_sequences, evaluation_sequences], ids=lambda cut: cut.__name__
)

texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


def documents(*contents: str) -> list[Document]:
    return [Document(f"{number}.txt", text) for number, text in enumerate(contents)]


def numbered(count: int) -> list[Document]:
    return documents(*(f"document {number}\n" for number in range(count)))


def contents(chosen: list[Document]) -> list[str]:
    return [document.text for document in chosen]


def decoded(sequence: list[int]) -> str:
    return "".join(PLAIN.convert_ids_to_tokens(sequence))


# The split


@given(st.lists(texts, min_size=1, max_size=60), st.floats(0.01, 0.99), st.integers(0, 5))
@settings(deadline=None)
def test_no_text_is_on_both_sides(drawn: list[str], fraction: float, seed: int) -> None:
    try:
        ours, held_out = split_documents(documents(*drawn), fraction, seed)
    except CalibrationTooShort:
        return
    assert ours
    assert held_out
    assert len(set(contents(ours + held_out))) == len(ours) + len(held_out)
    if len({text for text in drawn if text.strip()}) >= MIN_DOCUMENTS:
        assert set(contents(ours + held_out)) == {text for text in drawn if text.strip()}


def test_equal_texts_count_as_one_document() -> None:
    once = split_documents(numbered(50), 0.2, 0)
    copies = [Document(f"copy-of-{document.id}", document.text) for document in numbered(50)]
    twice = split_documents(numbered(50) + copies, 0.2, 0)
    assert [contents(side) for side in twice] == [contents(side) for side in once]


@pytest.mark.parametrize(("fraction", "held_out"), [(0.1, 10), (0.25, 25), (0.001, 1), (0.999, 99)])
def test_the_held_out_share_is_what_was_asked_for_and_leaves_both_sides_something(
    fraction: float, held_out: int
) -> None:
    ours, theirs = split_documents(numbered(100), fraction, 0)
    assert (len(ours), len(theirs)) == (100 - held_out, held_out)


def test_the_split_depends_on_texts_and_seed_and_not_on_the_order_of_files() -> None:
    first = split_documents(numbered(100), 0.1, 0)
    assert split_documents(reversed(numbered(100)), 0.1, 0) == first
    assert split_documents(numbered(100), 0.1, 1) != first


def test_more_documents_move_none_from_one_side_of_the_order_to_another() -> None:
    fewer, _ = split_documents(numbered(100), 0.1, 0)
    more, _ = split_documents(numbered(120), 0.1, 0)
    kept = [document for document in more if document in fewer]
    assert kept == [document for document in fewer if document in more]


def test_one_long_file_is_cut_at_its_lines_into_pieces() -> None:
    lines = [f"line {number} of a long file\n" for number in range(1000)]
    ours, held_out = split_documents([Document("long.txt", "".join(lines))], 0.25, 0)
    assert MIN_DOCUMENTS - 2 <= len(ours) + len(held_out) <= MIN_DOCUMENTS
    assert len(held_out) == 5
    pieces = sorted(ours + held_out, key=lambda piece: int(piece.id.removeprefix("long.txt#")))
    assert "".join(contents(pieces)) == "".join(lines)
    assert all(piece.text.endswith("\n") for piece in pieces)


def test_a_few_documents_are_cut_too_and_keep_their_names() -> None:
    two = documents("a\nb\n" * 40, "c\nd\n" * 40)
    ours, held_out = split_documents(two, 0.1, 0)
    assert {piece.id.partition("#")[0] for piece in ours + held_out} == {"0.txt", "1.txt"}


@pytest.mark.parametrize("text", ["", " \n\n", "one line and no more"])
def test_text_that_cannot_be_split_is_refused(text: str) -> None:
    with pytest.raises(CalibrationTooShort, match="at least two documents") as caught:
        split_documents(documents(text), 0.1, 0)
    assert caught.value.param == "calibration.data"


# The cuts


@TOKENIZERS
def test_the_prefix_is_what_the_tokenizer_puts_first(tokenizer: Any, prefix: list[int]) -> None:
    assert sequence_prefix(tokenizer) == prefix


def test_what_a_tokenizer_puts_last_is_no_prefix() -> None:
    class Closing:
        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            tokens = PLAIN(text, add_special_tokens=False)["input_ids"]
            return {"input_ids": [*tokens, EOS] if add_special_tokens else tokens}

    assert sequence_prefix(Closing()) == []


@TOKENIZERS
@CUTS
def test_every_sequence_begins_as_the_tokenizer_begins_one(
    cut: Callable[..., list[list[int]]], tokenizer: Any, prefix: list[int]
) -> None:
    cuts = cut(documents("abc" * 40, "xyz" * 40), tokenizer, length=16, count=10, seed=0)
    assert len(cuts) == 10
    for sequence in cuts:
        assert len(sequence) == 16
        assert sequence[: len(prefix)] == prefix
        assert BOS not in sequence[len(prefix) :]


@TOKENIZERS
@given(lengths=st.lists(st.integers(1, 90), min_size=1, max_size=8), data=st.data())
@settings(deadline=None, max_examples=50)
def test_calibration_sequences_are_exactly_as_long_and_as_many_as_asked_for(
    tokenizer: Any, prefix: list[int], lengths: list[int], data: st.DataObject
) -> None:
    length = data.draw(st.integers(8, 40))
    count = data.draw(st.integers(1, 12))
    window = length - len(prefix)
    chosen = documents(*("x" * size for size in lengths))
    whole = sum(size // window for size in lengths)
    rests = sum(size % window + 1 for size in lengths if size % window) // window
    if count > whole + rests:
        with pytest.raises(CalibrationTooShort, match=f"gives {whole + rests} sequences"):
            calibration_sequences(chosen, tokenizer, length=length, count=count, seed=0)
        return
    cuts = calibration_sequences(chosen, tokenizer, length=length, count=count, seed=0)
    assert [len(sequence) for sequence in cuts] == [length] * count
    assert sum(EOS not in sequence for sequence in cuts) >= min(count, whole)


def test_too_little_text_names_the_field_and_the_way_out() -> None:
    with pytest.raises(CalibrationTooShort, match=r"gives 2 sequences of 8 .* not the 3") as caught:
        calibration_sequences(documents("x" * 20), PLAIN, length=8, count=3, seed=0)
    assert caught.value.param == "calibration.sequences"


@CUTS
def test_windows_cover_a_document_once(cut: Callable[..., list[list[int]]]) -> None:
    text = "".join(f"{number:04d}" for number in range(40))
    cuts = cut(documents(text), PLAIN, length=16, count=10, seed=0)
    windows = [text[start : start + 16] for start in range(0, len(text), 16)]
    assert sorted(map(decoded, cuts)) == sorted(windows)
    assert list(map(decoded, cuts)) != windows  # beginnings of files are not preferred


@CUTS
def test_every_document_is_heard_before_any_is_heard_twice(
    cut: Callable[..., list[list[int]]],
) -> None:
    letters = "abcdef"
    cuts = cut(documents(*(letter * 64 for letter in letters)), PLAIN, length=16, count=20, seed=0)
    heard = [decoded(sequence)[0] for sequence in cuts]
    assert heard == list(itertools.islice(itertools.cycle(letters), 20))


def test_the_rests_of_documents_are_joined_by_the_end_of_text() -> None:
    cuts = calibration_sequences(
        documents("aaaa", "bbbbb", "cc"), WITH_BOS, length=8, count=1, seed=0
    )
    assert cuts == [[BOS, *PLAIN("aaaa")["input_ids"], EOS, *PLAIN("bb")["input_ids"]]]


def test_a_tokenizer_without_end_of_text_joins_without_one() -> None:
    tokenizer = byte_tokenizer(adds_bos=False)
    tokenizer.eos_token = None
    cuts = calibration_sequences(documents("aaaa", "bbbb"), tokenizer, length=8, count=1, seed=0)
    assert list(map(decoded, cuts)) == ["aaaabbbb"]


def test_no_more_text_is_tokenized_than_is_needed() -> None:
    class Counting:
        eos_token_id = EOS
        calls = 0

        def __call__(self, text: str, **options: Any) -> Any:
            self.calls += 1
            return PLAIN(text, **options)

    tokenizer = Counting()
    many = documents(*(f"{number:016d}" for number in range(1000)))
    calibration_sequences(many, tokenizer, length=16, count=5, seed=0)
    assert tokenizer.calls == 2 + 5  # two to find the prefix


@CUTS
def test_the_same_documents_and_seed_give_the_same_sequences(
    cut: Callable[..., list[list[int]]],
) -> None:
    long = documents("".join(map(str, range(200))), "".join(map(chr, range(200, 500))))
    first = cut(long, PLAIN, length=16, count=10, seed=0)
    assert cut(long, PLAIN, length=16, count=10, seed=0) == first
    assert cut(long, PLAIN, length=16, count=10, seed=1) != first


def test_evaluation_sequences_are_never_joined_nor_too_short_to_predict() -> None:
    cuts = evaluation_sequences(documents("abc", "d", "ef"), PLAIN, length=16, count=9, seed=0)
    assert list(map(decoded, cuts)) == ["abc", "ef"]
    assert all(len(sequence) >= MIN_SEQUENCE_TOKENS for sequence in cuts)
    with_bos = evaluation_sequences(documents("d"), WITH_BOS, length=16, count=9, seed=0)
    assert with_bos == [[BOS, *PLAIN("d")["input_ids"]]]


@given(st.lists(st.lists(st.just(7), min_size=1, max_size=30), max_size=30), st.integers(1, 5))
def test_shorter_sequences_go_in_larger_batches(sequences: list[list[int]], size: int) -> None:
    batches = list(in_padded_batches(sequences, size))
    assert [each for batch in batches for each in batch] == sorted(sequences, key=len)
    most = size * max(map(len, sequences), default=0)
    for batch, following in itertools.pairwise([*batches, []]):
        assert 0 < len(batch) * len(batch[-1]) <= most
        if following:
            assert (len(batch) + 1) * len(following[0]) > most

"""Splits documents into calibration and held-out text, and cuts both into token sequences.

* The hash of its text decides whether a document is for calibration or for evaluation. Equal texts
  are on the same side, so the two never overlap.
* Every sequence begins with BOS if the tokenizer adds one. Models trained in this way would show
  several times their true perplexity on windows without it.
* Sequences come from the documents in turn, so that many documents are used before any is used
  twice. The same documents and seed give the same sequences.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

from service.errors import CalibrationTooShort
from service.inputs.texts.documents import Document

MIN_DOCUMENTS = 20
"""Fewer documents than this are cut into pieces, so that one long file can be split too."""

MIN_SEQUENCE_TOKENS = 2
"""A shorter sequence predicts nothing."""

Item = TypeVar("Item")

Tokenizer = Any
"""A transformers tokenizer; the library does not type them."""


def split_documents(
    documents: Iterable[Document], held_out_fraction: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """Calibration and held-out documents, each in a pseudo-random order fixed by `seed`.

    Raises CalibrationTooShort if the text does not give one document for each side.
    """
    unique = {_order(document, seed): document for document in documents if document.text.strip()}
    if len(unique) < MIN_DOCUMENTS:
        pieces = (piece for document in unique.values() for piece in _pieces(document))
        unique = {_order(piece, seed): piece for piece in pieces}
    if len(unique) < 2:
        raise CalibrationTooShort(
            "the calibration text is empty or a single line: it needs at least two documents",
            param="calibration.data",
        )
    ordered = [unique[key] for key in sorted(unique)]
    held_out = min(max(1, round(held_out_fraction * len(ordered))), len(ordered) - 1)
    return ordered[held_out:], ordered[:held_out]


def calibration_sequences(
    documents: Iterable[Document], tokenizer: Tokenizer, *, length: int, count: int, seed: int
) -> list[list[int]]:
    """`count` sequences of exactly `length` tokens, the first of `training_sequences`.

    Raises CalibrationTooShort if the whole text is too short.
    """
    drawn = training_sequences(documents, tokenizer, length=length, count=count, seed=seed)
    if len(drawn) < count:
        raise CalibrationTooShort(
            f"the calibration text gives {len(drawn)} sequences of {length} tokens, "
            f"not the {count} that the job needs: add text, or use fewer or shorter sequences",
            param="calibration.sequences",
        )
    return drawn


def training_sequences(
    documents: Iterable[Document], tokenizer: Tokenizer, *, length: int, count: int, seed: int
) -> list[list[int]]:
    """At most `count` sequences of exactly `length` tokens; with more, the first ones stay.

    Whole windows of long documents come first; then the remainders of documents follow, joined by
    the end-of-text token.
    """
    prefix = sequence_prefix(tokenizer)
    window = length - len(prefix)
    drawn: list[list[int]] = []
    remainders: list[int] = []
    for tokens in _windows(documents, tokenizer, window, seed):
        if len(tokens) == window:
            drawn.append(prefix + tokens)
            if len(drawn) == count:
                return drawn
        else:
            remainders += [*tokens, *_separator(tokenizer)]
    packed = [remainders[start : start + window] for start in range(0, len(remainders), window)]
    drawn += [prefix + tokens for tokens in packed if len(tokens) == window]
    return drawn[:count]


def evaluation_sequences(
    documents: Iterable[Document], tokenizer: Tokenizer, *, length: int, count: int, seed: int
) -> list[list[int]]:
    """At most `count` sequences of at most `length` tokens, each from a single document."""
    prefix = sequence_prefix(tokenizer)
    drawn = (
        prefix + tokens for tokens in _windows(documents, tokenizer, length - len(prefix), seed)
    )
    long_enough = (tokens for tokens in drawn if len(tokens) >= MIN_SEQUENCE_TOKENS)
    return list(islice(long_enough, count))


def in_batches(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items in order, `size` at a time."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def in_padded_batches(
    sequences: Iterable[Sequence[int]], size: int
) -> Iterator[list[Sequence[int]]]:
    """The sequences by length, in batches as large as `size` of the longest.

    A batch that is padded to its longest sequence has at most `size` times as many tokens as the
    longest of all: shorter sequences go in larger batches.
    """
    ordered = sorted(sequences, key=len)
    most = size * len(ordered[-1]) if ordered else 0
    batch: list[Sequence[int]] = []
    for sequence in ordered:
        if batch and (len(batch) + 1) * len(sequence) > most:
            yield batch
            batch = []
        batch.append(sequence)
    if batch:
        yield batch


def sequence_prefix(tokenizer: Tokenizer) -> list[int]:
    """The tokens that the tokenizer puts before any text: BOS or none."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    starts = (i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare)
    return list(full[: next(starts, 0)])


def _windows(
    documents: Iterable[Document], tokenizer: Tokenizer, window: int, seed: int
) -> Iterator[list[int]]:
    """Windows of `window` tokens, one from each document in turn, in several rounds.

    Each document's windows come in a random order, so that the beginnings of files are not
    preferred. A document is tokenized only when its first window is needed.
    """
    waiting: list[Iterator[list[int]]] = []
    for document in documents:
        windows = _document_windows(document, tokenizer, window, seed)
        if (first := next(windows, None)) is not None:
            yield first
            waiting.append(windows)
    while waiting:
        still: list[Iterator[list[int]]] = []
        for windows in waiting:
            if (tokens := next(windows, None)) is not None:
                yield tokens
                still.append(windows)
        waiting = still


def _document_windows(
    document: Document, tokenizer: Tokenizer, window: int, seed: int
) -> Iterator[list[int]]:
    tokens = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
    starts = list(range(0, len(tokens), window))
    random.Random(f"{seed}:{document.id}").shuffle(starts)  # noqa: S311 - a sample, not a secret
    whole_first = sorted(starts, key=lambda start: start + window > len(tokens))
    for start in whole_first:
        yield tokens[start : start + window]


def _separator(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _order(document: Document, seed: int) -> str:
    digest = hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest()
    return hashlib.sha256(f"{seed}:{digest}".encode()).hexdigest()


def _pieces(document: Document) -> Iterator[Document]:
    """Cut a document at line ends into at most MIN_DOCUMENTS pieces of similar length."""
    size = -(-len(document.text) // MIN_DOCUMENTS)
    number, length = 0, 0
    piece: list[str] = []
    for line in document.text.splitlines(keepends=True):
        piece.append(line)
        length += len(line)
        if length >= size:
            yield Document(f"{document.id}#{number}", "".join(piece))
            number, piece, length = number + 1, [], 0
    if piece:
        yield Document(f"{document.id}#{number}", "".join(piece))

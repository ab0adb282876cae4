"""Checks the bytes of an upload while they pass, in bounded memory: plain text and JSONL.

A worker reads what was stored with `service.inputs.texts`. What is refused here it would refuse, in
the same words; the bounds here are its own, or tighter.
"""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Iterator
from typing import Protocol

from service.errors import DataInvalid
from service.inputs.texts.documents import MAX_DOCUMENTS, MAX_TEXT_BYTES
from service.inputs.texts.rows import (
    MAX_DOCUMENT_BYTES,
    Chat,
    not_utf8,
    parse_row,
    text_of,
    too_large,
)
from service.inputs.texts.text_files import MAX_EXPANSION, MIN_EXPANDED_BYTES

MAX_LINE_BYTES = 8 * 2**20
"""As objects in memory a line may take 40 times as much."""
EXPANDED_BYTES = 2**18
"""How much of a compressed file is expanded at a time."""

GZIP_MAGIC = b"\x1f\x8b"
PARQUET_MAGIC = b"PAR1"
BYTE_ORDER_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)

TEXT_FIELD_PARAM = "text_field"


class Check(Protocol):
    """Reads a file piece by piece; every method raises DataInvalid."""

    documents: int
    empty_rows: int

    def feed(self, data: bytes) -> None: ...

    def finish(self) -> None:
        """Say that the file ends here."""


class TextCheck:
    """Checks one plain text, which is one document."""

    def __init__(self) -> None:
        self.documents = 0
        self.empty_rows = 0
        self._position = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def feed(self, data: bytes) -> None:
        if self._position == 0 and data.startswith(BYTE_ORDER_MARKS):
            raise _not_text("it is UTF-16; convert it to UTF-8")
        if b"\0" in data:
            position = self._position + data.index(0)
            raise _not_text(f"it is binary: it contains null bytes, first at position {position}")
        self._decode(data, final=False)
        self._position += len(data)
        if self._position > MAX_DOCUMENT_BYTES:
            raise DataInvalid(
                f"The text is larger than {MAX_DOCUMENT_BYTES} bytes, and would be one document. "
                "Cut it into documents, and upload them as JSONL.",
            )

    def finish(self) -> None:
        self._decode(b"", final=True)
        if not self.documents:
            raise DataInvalid("There is no text in the file.")

    def _decode(self, data: bytes, *, final: bool) -> None:
        pending = self._decoder.getstate()[0]
        try:
            text = self._decoder.decode(data, final)
        except UnicodeDecodeError as error:
            start = self._position - len(pending)
            raise _not_text(not_utf8(pending + data, error, start)) from error
        if not self.documents and text.strip("\ufeff").strip():
            self.documents = 1


class JsonLinesCheck:
    """Checks rows: each a JSON object with a text, or a chat, in its field."""

    def __init__(self, text_field: str) -> None:
        self.documents = 0
        self.empty_rows = 0
        self._text_field = text_field
        self._rows = 0
        self._text_bytes = 0
        self._begun = b""  # the line that has not ended

    def feed(self, data: bytes) -> None:
        *lines, self._begun = (self._begun + data).split(b"\n")
        for line in lines:
            self._read(line)
        self._check_length(self._begun, self._rows + 1)

    def finish(self) -> None:
        self._read(self._begun)
        if not self.documents:
            raise DataInvalid("There is no text in the file.")

    def _read(self, line: bytes) -> None:
        self._rows += 1
        self._check_length(line, self._rows)
        if not line.strip():
            return
        where = f"line {self._rows}"
        text = text_of(parse_row(line, where, None), where, self._text_field, TEXT_FIELD_PARAM)
        if isinstance(text, Chat) or text.strip():
            self.documents += 1
        else:
            self.empty_rows += 1
        self._text_bytes += len(line)
        for amount, bound, unit in (
            (self.documents + self.empty_rows, MAX_DOCUMENTS, "rows"),
            (self._text_bytes, MAX_TEXT_BYTES, "bytes of text"),
        ):
            if amount > bound:
                raise DataInvalid(
                    f"The file has more than {bound} {unit}; upload it as several datasets."
                )

    def _check_length(self, line: bytes, number: int) -> None:
        if len(line) > MAX_LINE_BYTES:
            raise too_large(f"line {number}", MAX_LINE_BYTES, None)


class ParquetStart:
    """Checks that a file begins as Parquet does; the rest is checked once it is stored."""

    def __init__(self) -> None:
        self.documents = 0
        self.empty_rows = 0
        self._begun = False

    def feed(self, data: bytes) -> None:
        if not (self._begun or data.startswith(PARQUET_MAGIC)):
            hint = ": decompress it" if data.startswith(GZIP_MAGIC) else ""
            raise DataInvalid(f"The file is not in the format Parquet{hint}.")
        self._begun = True

    def finish(self) -> None:
        if not self._begun:
            raise DataInvalid("The file is empty.")


class Gunzip:
    """Expands a file in gzip, piece by piece; it may expand only so far."""

    def __init__(self) -> None:
        self._received = 0
        self._expanded = 0
        self._member = _new_member()

    def expand(self, data: bytes) -> Iterator[bytes]:
        """The next bytes, in pieces. Raises DataInvalid."""
        self._received += len(data)
        bound = max(MIN_EXPANDED_BYTES, MAX_EXPANSION * self._received)
        while data := self._begin_member(data):
            try:
                piece = self._member.decompress(data, EXPANDED_BYTES)
            except zlib.error as error:
                raise _unreadable(str(error)) from error
            self._expanded += len(piece)
            if self._expanded > bound:
                raise _unreadable(f"it expands to more than {bound} bytes; decompress it")
            yield piece
            data = self._member.unconsumed_tail or self._member.unused_data

    def finish(self) -> None:
        """Say that the file ends here. Raises DataInvalid if it was cut."""
        if not self._member.eof:
            raise _unreadable("it ends before its compressed data does")

    def _begin_member(self, data: bytes) -> bytes:
        """What is left to expand: a file may have several members, and zeros after the last."""
        if self._member.eof:
            data = data.lstrip(b"\0")
            if data:
                self._member = _new_member()
        return data


def _new_member() -> zlib._Decompress:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)


def _not_text(reason: str) -> DataInvalid:
    return DataInvalid(f"The file cannot be read as text: {reason}.")


def _unreadable(reason: str) -> DataInvalid:
    return DataInvalid(f"The file cannot be read: {reason}.")

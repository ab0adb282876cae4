"""Reads one file: plain text, JSONL or Parquet. The suffix says which; its case does not matter.

A file is read whole, or as far as the check of a submission looks: the first `CHECKED_BYTES` of
plain text and JSONL, and the footer of Parquet. Both ways run the same code, so they refuse with
the same words.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from service.errors import DataInvalid
from service.inputs.texts.parquet_files import (
    Column,
    Footer,
    ParquetReader,
    ParquetUnreadable,
    copy_footer,
)
from service.inputs.texts.rows import (
    MAX_DOCUMENT_BYTES,
    MESSAGE,
    OTHER_MESSAGE,
    Chat,
    check_fields,
    half_a_character,
    is_other_chat,
    not_text,
    not_utf8,
    parse_row,
    text_field_in,
    text_of,
    too_large,
)

MAX_EXPANSION = 256
MIN_EXPANDED_BYTES = 64 * 2**20
"""A compressed file may expand to this size, or to `MAX_EXPANSION` times its own. Prose shrinks to
a third, and what repeats itself to a hundredth."""
CHECKED_BYTES = 256 * 2**10

JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
PARQUET_SUFFIX = ".parquet"
RECORD_SUFFIXES = (*JSONL_SUFFIXES, PARQUET_SUFFIX)

UNREAD = {
    (".json", ".ipynb"): "it is one JSON document; write its texts as objects to a .jsonl file, "
    "one a line",
    (".csv", ".tsv"): "it is a table; write its rows to a .jsonl or .parquet file",
    (".gz", ".bz2", ".xz", ".zst", ".zip"): "it is compressed; decompress it, or save JSONL as "
    ".jsonl.gz",
}
"""Data that is not read, by its suffixes, and why. As prose it would be the wrong text."""

READING_ERRORS = (OSError, EOFError, zlib.error, ParquetUnreadable)
"""What a damaged file may raise while it is read."""


class NotText(Exception):
    """The file is not text; the message says why."""


class FileReader:
    """Reads one file after another, for the field `param` of a request. Use `with`.

    Reading raises NotText, DataInvalid and READING_ERRORS.
    """

    def __init__(self, param: str, *, only_checks: bool = False) -> None:
        self._param = param
        self._only_checks = only_checks
        self._parquet = ParquetReader()
        self.saw_all = True
        """Whether every file was read to its end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._parquet.close()

    def texts(
        self, file: Path, path: str, text_field: str
    ) -> Iterator[tuple[int | None, str | Chat]]:
        """The texts and chats of the rows, numbered from 1, or the text of the whole file."""
        if not path.lower().endswith(RECORD_SUFFIXES):
            yield None, self._plain(file, path)
            return
        if path.lower().endswith(PARQUET_SUFFIX):
            rows = self._parquet_texts(file, path, text_field)
        else:
            rows = self._json_rows(file, path)
        param = f"{self._param}.text_field"
        for row, record in rows:
            yield row, text_of(record, f"{path}:{row}", text_field, param)

    def records(
        self, file: Path, path: str, params: Mapping[str, str]
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The numbered rows, with the fields that `params` maps to fields of the request."""
        if not path.lower().endswith(RECORD_SUFFIXES):
            _refuse_data(path)
            raise NotText(f"it is none of {', '.join(RECORD_SUFFIXES)}")
        if path.lower().endswith(PARQUET_SUFFIX):
            return self._parquet_records(file, path, params)
        return self._json_records(file, path, params)

    def _plain(self, file: Path, path: str) -> str:
        _refuse_data(path)
        bound = CHECKED_BYTES if self._only_checks else MAX_DOCUMENT_BYTES
        with file.open("rb") as stream:
            data = stream.read(bound)
        is_whole = file.stat().st_size <= bound
        text = _decoded(data, is_whole)
        if not (is_whole or self._only_checks):
            raise too_large(path, MAX_DOCUMENT_BYTES, self._param)
        self.saw_all &= is_whole
        return text

    def _json_records(
        self, file: Path, path: str, params: Mapping[str, str]
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        for row, record in self._json_rows(file, path):
            check_fields(f"{path}:{row}", params, record, is_other_chat)
            yield row, {name: record[name] for name in params}

    def _json_rows(self, file: Path, path: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
        for row, line in enumerate(self._lines(file, path), start=1):
            where = f"{path}:{row}"
            if len(line) > MAX_DOCUMENT_BYTES:
                raise too_large(where, MAX_DOCUMENT_BYTES, self._param)
            if line.strip():
                yield row, parse_row(line, where, self._param)

    def _lines(self, file: Path, path: str) -> Iterator[bytes]:
        is_compressed = path.lower().endswith(".gz")
        with file.open("rb") as stream:
            if self._only_checks:
                yield from self._first_lines(stream, file.stat().st_size, is_compressed)
            elif is_compressed:
                yield from _bounded_lines(stream, file.stat().st_size)
            else:
                yield from _read_lines(stream)

    def _first_lines(self, stream: IO[bytes], size: int, is_compressed: bool) -> Iterable[bytes]:
        """The lines that end within the bytes that are checked."""
        data, is_whole = stream.read(CHECKED_BYTES), size <= CHECKED_BYTES
        if is_compressed:
            data, is_whole = _expanded(data, is_whole)
        self.saw_all &= is_whole
        return io.BytesIO(data if is_whole else data[: data.rfind(b"\n") + 1])

    def _parquet_texts(
        self, file: Path, path: str, text_field: str
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        param = f"{self._param}.text_field"
        name = _text_column(self._footer(file), path, text_field, param)
        return self._parquet_rows(file, [name])

    def _parquet_records(
        self, file: Path, path: str, params: Mapping[str, str]
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        check_fields(path, params, self._footer(file).columns, _has_other_chats)
        return self._parquet_rows(file, list(params))

    def _footer(self, file: Path) -> Footer:
        footer = _footer(self._parquet, file)
        self.saw_all &= not (self._only_checks and footer.rows)
        return footer

    def _parquet_rows(
        self, file: Path, columns: Sequence[str]
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        if self._only_checks:
            return
        _, rows = self._parquet.open(file, columns, _largest_expansion(file.stat().st_size))
        yield from enumerate(rows, start=1)


def check_parquet(file: Path, text_field: str, param: str) -> int:
    """The number of rows of a Parquet file, whose footer says that each has a text.

    `param` is the field of the request that names `text_field`. Raises DataInvalid and
    READING_ERRORS.
    """
    with ParquetReader() as reader:
        footer = _footer(reader, file)
    _text_column(footer, file.name, text_field, param)
    if not footer.rows:
        raise DataInvalid(f"There is no text in '{file.name}'.")
    return footer.rows


def copy_checked(path: str, size: int, read: Callable[[int, int], bytes], copy: IO[bytes]) -> None:
    """Copy what a check reads of a file; the rest of the copy, of the same size, is a hole.

    `read` takes the position and the number of the bytes to read.
    """
    copy.truncate(size)
    if path.lower().endswith(PARQUET_SUFFIX):
        copy_footer(size, read, copy)
    elif size:
        copy.write(read(0, min(size, CHECKED_BYTES)))


def record_size(fields: Mapping[str, Any], where: str, param: str) -> int:
    """The bytes of a record's fields as JSON; a value that JSON cannot hold counts as its text."""
    try:
        size = len(json.dumps(fields, ensure_ascii=False, default=str).encode())
    except UnicodeEncodeError as error:
        raise half_a_character(where, error, param) from error
    except RecursionError as error:
        raise DataInvalid(f"'{where}' is nested too deeply.", param=param) from error
    if size > MAX_DOCUMENT_BYTES:
        raise too_large(where, MAX_DOCUMENT_BYTES, param)
    return size


def _refuse_data(path: str) -> None:
    for suffixes, reason in UNREAD.items():
        if path.lower().endswith(suffixes):
            raise NotText(reason)


def _decoded(data: bytes, is_whole: bool) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise NotText("it is UTF-16; convert it to UTF-8")
    if b"\0" in data:
        raise NotText(f"it is binary: it contains null bytes, first at position {data.index(0)}")
    try:  # incrementally, because the bound may have cut a character in two
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=is_whole)
    except UnicodeDecodeError as error:
        raise NotText(not_utf8(data, error)) from error
    return text.removeprefix("\ufeff")


def _read_lines(stream: IO[bytes] | gzip.GzipFile) -> Iterator[bytes]:
    while line := stream.readline(MAX_DOCUMENT_BYTES + 1):
        yield line


def _bounded_lines(stream: IO[bytes], size: int) -> Iterator[bytes]:
    """The lines of a file in gzip, which may expand only so far."""
    bound = left = _largest_expansion(size)
    with gzip.GzipFile(fileobj=stream) as expanding:
        for line in _read_lines(expanding):
            left -= len(line)
            if left < 0:
                raise OSError(f"it expands to more than {bound} bytes; decompress it")
            yield line


def _largest_expansion(size: int) -> int:
    return max(MIN_EXPANDED_BYTES, MAX_EXPANSION * size)


def _expanded(data: bytes, is_whole: bool) -> tuple[bytes, bool]:
    """What `CHECKED_BYTES` of the beginning of a gzip file expand to, and whether that is all."""
    parts = io.BytesIO()
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        try:
            while parts.tell() <= CHECKED_BYTES and (part := stream.read1(CHECKED_BYTES)):
                parts.write(part)
        except EOFError:
            if is_whole:
                raise
    expanded = parts.getvalue()
    return expanded[:CHECKED_BYTES], is_whole and len(expanded) <= CHECKED_BYTES


def _footer(reader: ParquetReader, file: Path) -> Footer:
    footer, no_rows = reader.open(file, None, _largest_expansion(file.stat().st_size))
    deque(no_rows, maxlen=0)  # before another file can be opened
    return footer


def _text_column(footer: Footer, path: str, text_field: str, param: str) -> str:
    """The column that holds the texts, or the chats. Raises DataInvalid about `param`."""
    columns = footer.columns
    name = text_field_in(columns, text_field, _has_chats)
    check_fields(path, {name: param}, columns, _has_other_chats)
    column = columns[name]
    if not (column.is_text or _has_chats(column)):
        raise not_text(name, path, column.type, _has_other_chats(column), param)
    return name


def _has_chats(column: Column) -> bool:
    return set(column.item_fields) >= MESSAGE


def _has_other_chats(column: Column) -> bool:
    return set(column.item_fields) >= OTHER_MESSAGE

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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self

from service.errors import DataInvalid
from service.inputs.texts.parquet_files import Column, ParquetReader, ParquetUnreadable, copy_footer

MAX_DOCUMENT_BYTES = 64 * 2**20
MAX_EXPANSION = 256
MIN_EXPANDED_BYTES = 64 * 2**20
"""A compressed file may expand to this size, or to `MAX_EXPANSION` times its own. Prose shrinks to
a third, and what repeats itself to a hundredth."""
CHECKED_BYTES = 256 * 2**10
MAX_NAMES_SHOWN = 20
MAX_SHOWN_CHARACTERS = 80
"""Of the names of a row's fields."""

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

MESSAGES = (frozenset({"role", "content"}), frozenset({"from", "value"}))
"""The fields of a chat's messages, in either of the usual forms."""
CHAT_HINT = (
    " Chats are not read: render each to one text with the model's chat template, and save the "
    "texts in a field of their own."
)

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

    def texts(self, file: Path, path: str, text_field: str) -> Iterator[tuple[int | None, str]]:
        """The texts of the rows, numbered from 1, or the text of the whole file, without number."""
        if not path.lower().endswith(RECORD_SUFFIXES):
            yield None, self._plain(file, path)
            return
        params = {text_field: f"{self._param}.text_field"}
        for row, record in self._rows(file, path, params, are_texts=True):
            yield row, self._checked(record[text_field], f"{path}:{row}", text_field)

    def records(
        self, file: Path, path: str, params: Mapping[str, str]
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """The numbered rows, with the fields that `params` maps to fields of the request."""
        if not path.lower().endswith(RECORD_SUFFIXES):
            _refuse_data(path)
            raise NotText(f"it is none of {', '.join(RECORD_SUFFIXES)}")
        return self._rows(file, path, params)

    def _plain(self, file: Path, path: str) -> str:
        _refuse_data(path)
        bound = CHECKED_BYTES if self._only_checks else MAX_DOCUMENT_BYTES
        with file.open("rb") as stream:
            data = stream.read(bound)
        is_whole = file.stat().st_size <= bound
        text = _decoded(data, is_whole)
        if not (is_whole or self._only_checks):
            raise _too_large(path, self._param)
        self.saw_all &= is_whole
        return text

    def _rows(
        self, file: Path, path: str, params: Mapping[str, str], *, are_texts: bool = False
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        if path.lower().endswith(PARQUET_SUFFIX):
            return self._parquet_rows(file, path, params, are_texts=are_texts)
        return self._json_rows(file, path, params)

    def _json_rows(
        self, file: Path, path: str, params: Mapping[str, str]
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        for row, line in enumerate(self._lines(file, path), start=1):
            where = f"{path}:{row}"
            if len(line) > MAX_DOCUMENT_BYTES:
                raise _too_large(where, self._param)
            if line.strip():
                record = _parse_json(line, where, self._param)
                _check_fields(where, params, record, _is_chat)
                yield row, {name: record[name] for name in params}

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

    def _parquet_rows(
        self, file: Path, path: str, params: Mapping[str, str], *, are_texts: bool
    ) -> Iterator[tuple[int, Mapping[str, Any]]]:
        columns = None if self._only_checks else list(params)
        bound = _largest_expansion(file.stat().st_size)
        footer, rows = self._parquet.open(file, columns, bound)
        _check_fields(path, params, footer.columns, _has_chats)
        for name in params:
            column = footer.columns[name]
            if are_texts and not column.is_text:
                raise self._not_text(name, path, column.type, _has_chats(column))
        self.saw_all &= not (self._only_checks and footer.rows)
        yield from enumerate(rows, start=1)

    def _checked(self, value: object, where: str, text_field: str) -> str:
        """The value as text; a null is an empty one."""
        if value is None:
            return ""
        if not isinstance(value, str):
            raise self._not_text(text_field, where, type(value).__name__, _is_chat(value))
        try:
            size = len(value.encode())
        except UnicodeEncodeError as error:
            raise _half_a_character(where, error, self._param) from error
        if size > MAX_DOCUMENT_BYTES:
            raise _too_large(where, self._param)
        return value

    def _not_text(self, text_field: str, where: str, kind: str, is_chat: bool) -> DataInvalid:
        hint = CHAT_HINT if is_chat else ""
        return DataInvalid(
            f"'{text_field}' of '{where}' is {kind}, not text.{hint}",
            param=f"{self._param}.text_field",
        )


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
        raise _half_a_character(where, error, param) from error
    except RecursionError as error:
        raise DataInvalid(f"'{where}' is nested too deeply.", param=param) from error
    if size > MAX_DOCUMENT_BYTES:
        raise _too_large(where, param)
    return size


def _too_large(where: str, param: str) -> DataInvalid:
    return DataInvalid(
        f"'{where}' is larger than {MAX_DOCUMENT_BYTES} bytes; cut it into several documents.",
        param=param,
    )


def _half_a_character(where: str, error: UnicodeEncodeError, param: str) -> DataInvalid:
    return DataInvalid(f"'{where}' contains half a character: {error}", param=param)


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
        raise NotText(_not_utf8(data, error)) from error
    return text.removeprefix("\ufeff")


def _not_utf8(data: bytes, error: UnicodeDecodeError) -> str:
    byte = f"byte 0x{data[error.start]:02x} at position {error.start}"
    return f"it is not UTF-8 ({byte}); if it is text, convert it to UTF-8"


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


def _parse_json(line: bytes, where: str, param: str) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataInvalid(f"'{where}': {_not_utf8(line, error)}.", param=param) from error
    except (ValueError, RecursionError) as error:
        raise DataInvalid(
            f"'{where}' is not JSON: {error}. Each line must be a JSON object.", param=param
        ) from error
    if not isinstance(record, dict):
        raise DataInvalid(f"'{where}' is not a JSON object, as each line must be.", param=param)
    return record


def _is_chat(value: object) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and _is_message(first)


def _is_message(fields: Collection[str]) -> bool:
    return any(names <= set(fields) for names in MESSAGES)


def _has_chats(column: Column) -> bool:
    return _is_message(column.item_fields)


def _check_fields(
    where: str,
    params: Mapping[str, str],
    fields: Mapping[str, Any],
    is_chat: Callable[[Any], bool],
) -> None:
    """Raise unless the row or file at `where` has all fields that the request names."""
    for wanted, param in params.items():
        if wanted not in fields:
            shown = (name[:MAX_SHOWN_CHARACTERS] for name in islice(fields, MAX_NAMES_SHOWN))
            names = ", ".join(f"'{name}'" for name in shown)
            hint = f" Name the right one in {param}." if param.endswith("_field") else ""
            raise DataInvalid(
                f"'{where}' has no field '{wanted}'; it has: {names or 'none'}."
                f"{CHAT_HINT if any(map(is_chat, fields.values())) else hint}",
                param=param,
            )

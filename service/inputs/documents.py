"""Reads documents and records from files. Each text file, JSONL line or Parquet row is a document.
Each JSONL line or Parquet row is a record, with the fields that the caller requests.

A file that is not UTF-8 text, or is a link that leads out of the folder, is an error if the pattern
names it. If a wildcard selects it, the file is skipped, counted and reported: a picture beside the
texts or one file in an old encoding is no reason to fail. A JSONL or Parquet file must always be
readable. Documents without any text are left out.
"""

from __future__ import annotations

import codecs
import gzip
import json
import logging
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as arrow
import pyarrow.parquet as parquet

from service.errors import DataInvalid, DataNotFound, PathNotAllowed
from service.inputs.glob import has_wildcard, selected_files
from service.inputs.opening import open_file

MAX_DOCUMENT_BYTES = 64 * 2**20
MAX_DOCUMENTS = 10_000_000
MAX_TEXT_BYTES = 4 * 2**30
"""All documents are in a worker's memory at once, and far fewer calibrate any model."""
PARQUET_ROWS = 64
MAX_NAMES_SHOWN = 20

RECORD_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")

READING_ERRORS = (OSError, EOFError, UnicodeDecodeError, zlib.error, arrow.ArrowException)
"""What a damaged file may raise while it is read."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """A text and where it stands: ``file`` or ``file:row``, rows counted from 1."""

    id: str
    text: str


@dataclass(frozen=True)
class Record:
    """A JSONL line or Parquet row: ``file:row``, rows counted from 1, and its fields."""

    id: str
    fields: Mapping[str, Any]  # only the requested ones


def read_records(
    root: Path, pattern: str, params: Mapping[str, str], param: str
) -> Iterator[Record]:
    """Every JSONL line and Parquet row of one file, or of the files below a folder.

    `root` is a resolved path. `params` maps each field to read to the field of the request that
    names it. Raises `DataNotFound` if the pattern selects nothing, `PathNotAllowed` for a link that
    leads out of `root`, and `DataInvalid` for files of another kind and for rows that cannot be
    read, lack a field or exceed a bound. The size of a row is that of its fields as JSON.
    """
    count = size = 0
    for path in _files(root, pattern, param):
        try:
            with _opened(root, path, param) as file:
                for row, fields in _records(file, path, params, param):
                    where = f"{path}:{row}"
                    count, size = count + 1, size + _checked_size(fields, where, param)
                    _check_bounds(count, size, param)
                    yield Record(where, fields)
        except _NotText as reason:
            raise _refusal(reason, path, param) from reason
        except READING_ERRORS as error:
            raise DataInvalid(f"'{path}' cannot be read: {error}", param=param) from error


def read_documents(
    root: Path,
    pattern: str,
    text_field: str,
    param: str,
    on_skip: Callable[[str, str], None] | None = None,
) -> Iterator[Document]:
    """Every document of one file, or of the files below a folder in the order of their paths.

    `root` is a resolved path. Calls `on_skip` with the path of each skipped file and the reason.
    Raises `DataNotFound` if the pattern selects nothing, `PathNotAllowed` if it names a link that
    leads out of `root`, and `DataInvalid` for text that cannot be read, exceeds a bound or is
    missing.
    """
    paths = _files(root, pattern, param)
    tolerant = has_wildcard(pattern) and root.is_dir()
    skipped: list[str] = []
    count = size = 0
    for path in paths:
        try:
            for document in _read(root, path, text_field, param):
                count, size = count + 1, size + len(document.text.encode())
                _check_bounds(count, size, param)
                yield document
        except (_NotText, PathNotAllowed) as reason:
            if not tolerant:
                raise _refusal(reason, path, param) from reason
            skipped.append(path)
            if on_skip:
                on_skip(path, str(reason))
    if skipped:
        _log.warning("%d of %d files skipped, '%s' first", len(skipped), len(paths), skipped[0])
    if not count:
        raise DataInvalid(f"There is no text in {root}.", param=param)


class _NotText(Exception):
    """The file is not text; the message says why."""


def _refusal(reason: _NotText | PathNotAllowed, path: str, param: str) -> Exception:
    if isinstance(reason, PathNotAllowed):
        return reason
    return DataInvalid(f"'{path}' cannot be read as text: {reason}.", param=param)


def _files(root: Path, pattern: str, param: str) -> list[str]:
    """The files to read, relative to the folder; or the name of the one file."""
    if root.is_file():
        return [root.name]
    if not root.is_dir():
        raise DataNotFound(f"There is no text at {root}.", param=param)
    try:
        paths = sorted(selected_files(root, pattern))
    except OSError as error:
        raise DataInvalid(f"A folder below {root} cannot be read: {error}", param=param) from error
    if not paths:
        raise DataNotFound(f"No file below {root} matches '{pattern}'.", param=f"{param}.pattern")
    return paths


def _check_bounds(count: int, size: int, param: str) -> None:
    for amount, bound, unit in (
        (count, MAX_DOCUMENTS, "documents"),
        (size, MAX_TEXT_BYTES, "bytes of text"),
    ):
        if amount > bound:
            raise DataInvalid(
                f"There are more than {bound} {unit}. Name a pattern that selects fewer files.",
                param=param,
            )


def _read(root: Path, path: str, text_field: str, param: str) -> Iterator[Document]:
    """The documents of one file that have any text."""
    try:
        with _opened(root, path, param) as file:
            for row, text in _rows(file, path, text_field, param):
                if text.strip():
                    yield Document(path if row is None else f"{path}:{row}", text)
    except READING_ERRORS as error:
        raise DataInvalid(f"'{path}' cannot be read: {error}", param=param) from error


def _rows(
    file: IO[bytes], path: str, text_field: str, param: str
) -> Iterator[tuple[int | None, str]]:
    if path.endswith(RECORD_SUFFIXES):
        params = {text_field: f"{param}.text_field"}
        for row, record in _records(file, path, params, param):
            yield row, _checked(record[text_field], f"{path}:{row}", text_field, param)
    else:
        yield None, _whole_file(file, path, param)


def _records(
    file: IO[bytes], path: str, params: Mapping[str, str], param: str
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    if not path.endswith(RECORD_SUFFIXES):
        raise _NotText(f"it is none of {', '.join(RECORD_SUFFIXES)}")
    read = _parquet_rows if path.endswith(".parquet") else _json_lines
    return read(file, path, params, param)


def _opened(root: Path, path: str, param: str) -> IO[bytes]:
    """A file of the folder `root`, or `root` itself, opened below it whatever becomes of links."""
    try:
        file = (root if root.is_file() else root / path).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise _NotText("it is a broken link") from error
    if not file.is_relative_to(root):
        raise PathNotAllowed(f"'{path}' is a link that leads out of {root}.", param=param)
    if not file.is_file():
        raise _NotText("it is not a regular file")
    return open_file(file)


def _whole_file(file: IO[bytes], path: str, param: str) -> str:
    data = file.read(MAX_DOCUMENT_BYTES + 1)
    whole = len(data) <= MAX_DOCUMENT_BYTES
    try:  # incrementally, because the bound may have cut a character in two
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=whole)
    except UnicodeDecodeError as error:
        raise _NotText("it is not UTF-8") from error
    if "\0" in text:
        raise _NotText("it contains null bytes")
    if not whole:
        raise _too_large(path, param)
    return text


def _json_lines(
    file: IO[bytes], path: str, params: Mapping[str, str], param: str
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with gzip.open(file) if path.endswith(".gz") else file as lines:
        row = 0
        while line := lines.readline(MAX_DOCUMENT_BYTES + 1):
            row += 1
            where = f"{path}:{row}"
            if len(line) > MAX_DOCUMENT_BYTES:
                raise _too_large(where, param)
            if line.strip():
                record = _parse_json(line, where, param)
                _check_fields(where, params, record)
                yield row, {name: record[name] for name in params}


def _parse_json(line: bytes, where: str, param: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataInvalid(f"'{where}' is not JSON: {error}", param=param) from error
    if not isinstance(record, dict):
        raise DataInvalid(f"'{where}' is not a JSON object.", param=param)
    return record


def _parquet_rows(
    file: IO[bytes],
    path: str,
    params: Mapping[str, str],
    param: str,  # noqa: ARG001 - the signature of _json_lines
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    with parquet.ParquetFile(file) as table:
        _check_fields(path, params, table.schema_arrow.names)
        batches = table.iter_batches(PARQUET_ROWS, columns=list(params))
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)


def _checked(value: object, where: str, text_field: str, param: str) -> str:
    """The value as text; a null is an empty one."""
    if value is None:
        return ""
    if not isinstance(value, str):
        kind = type(value).__name__
        raise DataInvalid(
            f"'{text_field}' of '{where}' is {kind}, not text.", param=f"{param}.text_field"
        )
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise DataInvalid(f"'{where}' contains half a character: {error}", param=param) from error
    if size > MAX_DOCUMENT_BYTES:
        raise _too_large(where, param)
    return value


def _checked_size(fields: Mapping[str, Any], where: str, param: str) -> int:
    """The bytes of a record's fields as JSON; a value that JSON cannot hold counts as its text."""
    try:
        size = len(json.dumps(fields, ensure_ascii=False, default=str).encode())
    except UnicodeEncodeError as error:
        raise DataInvalid(f"'{where}' contains half a character: {error}", param=param) from error
    except RecursionError as error:
        raise DataInvalid(f"'{where}' is nested too deeply.", param=param) from error
    if size > MAX_DOCUMENT_BYTES:
        raise _too_large(where, param)
    return size


def _check_fields(where: str, params: Mapping[str, str], fields: Collection[str]) -> None:
    for wanted, param in params.items():
        if wanted not in fields:
            names = ", ".join(f"'{name}'" for name in islice(fields, MAX_NAMES_SHOWN))
            raise DataInvalid(
                f"'{where}' has no field '{wanted}'; it has: {names or 'none'}.", param=param
            )


def _too_large(where: str, param: str) -> DataInvalid:
    return DataInvalid(
        f"'{where}' is larger than {MAX_DOCUMENT_BYTES} bytes; cut it into several documents.",
        param=param,
    )

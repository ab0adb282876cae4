"""Documents out of files: each text file, JSONL line or Parquet row is one.

A file that is not UTF-8 text, or is a link that leads out of the folder, ends the reading when it
was named, and is skipped, counted and reported when a wildcard took it: a picture beside the texts
or one file in an old encoding is no reason to fail. A JSONL or Parquet file must always be
readable. Documents without any text are left out.
"""

from __future__ import annotations

import codecs
import gzip
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet

from service.errors import DataInvalid, DataNotFound, PathNotAllowed
from service.patterns import has_wildcard, selected_files

MAX_DOCUMENT_BYTES = 64 * 2**20
MAX_DOCUMENTS = 10_000_000
MAX_TEXT_BYTES = 4 * 2**30
"""All documents are in a worker's memory at once, and far fewer calibrate any model."""
PARQUET_ROWS = 64
MAX_NAMES_SHOWN = 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """A text and where it stands: ``file`` or ``file:row``, rows counted from 1."""

    id: str
    text: str


def read_documents(
    root: Path,
    pattern: str,
    text_field: str,
    param: str,
    on_skip: Callable[[str, str], None] | None = None,
) -> Iterator[Document]:
    """Every document of one file, or of the files below a folder in the order of their paths.

    `on_skip` is told the path of each skipped file and why. Raises `DataNotFound` if the pattern
    selects nothing, `PathNotAllowed` if it names a link that leads out of `root`, `DataInvalid` for
    text that cannot be read, is beyond a bound, or is not there at all.
    """
    folder, paths = _files(root, pattern, param)
    tolerant = has_wildcard(pattern) and root.is_dir()
    skipped: list[str] = []
    count = size = 0
    for path in paths:
        try:
            for document in _read(folder, path, text_field, param):
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
    """The file is no text; says why."""


def _refusal(reason: _NotText | PathNotAllowed, path: str, param: str) -> Exception:
    if isinstance(reason, PathNotAllowed):
        return reason
    return DataInvalid(f"'{path}' cannot be read as text: {reason}.", param=param)


def _files(root: Path, pattern: str, param: str) -> tuple[Path, list[str]]:
    """The folder and, relative to it, the files to read."""
    if root.is_file():
        return root.parent, [root.name]
    if not root.is_dir():
        raise DataNotFound(f"There is no text at {root}.", param=param)
    try:
        paths = sorted(selected_files(root, pattern))
    except OSError as error:
        raise DataInvalid(f"A folder below {root} cannot be read: {error}", param=param) from error
    if not paths:
        raise DataNotFound(f"No file below {root} matches '{pattern}'.", param=f"{param}.pattern")
    return root, paths


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


def _read(folder: Path, path: str, text_field: str, param: str) -> Iterator[Document]:
    """The documents of one file that have any text."""
    file = _inside(folder, path, param)
    try:
        for row, text in _rows(file, path, text_field, param):
            if text.strip():
                yield Document(path if row is None else f"{path}:{row}", text)
    except (OSError, EOFError, zlib.error, arrow.ArrowException) as error:
        raise DataInvalid(f"'{path}' cannot be read: {error}", param=param) from error


def _rows(file: Path, path: str, text_field: str, param: str) -> Iterator[tuple[int | None, str]]:
    if path.endswith((".jsonl", ".jsonl.gz")):
        yield from _json_lines(file, path, text_field, param)
    elif path.endswith(".parquet"):
        yield from _parquet_rows(file, path, text_field, param)
    else:
        yield None, _whole_file(file, path, param)


def _inside(folder: Path, path: str, param: str) -> Path:
    try:
        file = (folder / path).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise _NotText("it is a broken link") from error
    if not file.is_relative_to(folder.resolve()):
        raise PathNotAllowed(f"'{path}' is a link that leads out of {folder}.", param=param)
    if not file.is_file():
        raise _NotText("it is not a regular file")
    return file


def _whole_file(file: Path, path: str, param: str) -> str:
    with file.open("rb") as stream:
        data = stream.read(MAX_DOCUMENT_BYTES + 1)
    whole = len(data) <= MAX_DOCUMENT_BYTES
    try:  # incrementally, because the bound may have cut a character in two
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=whole)
    except UnicodeDecodeError as error:
        raise _NotText("it is not UTF-8") from error
    if "\0" in text:
        raise _NotText("it holds zero bytes")
    if not whole:
        raise _too_large(path, param)
    return text


def _json_lines(file: Path, path: str, text_field: str, param: str) -> Iterator[tuple[int, str]]:
    with gzip.open(file) if path.endswith(".gz") else file.open("rb") as lines:
        row = 0
        while line := lines.readline(MAX_DOCUMENT_BYTES + 1):
            row += 1
            where = f"{path}:{row}"
            if len(line) > MAX_DOCUMENT_BYTES:
                raise _too_large(where, param)
            if line.strip():
                record = _parse_json(line, where, param)
                if text_field not in record:
                    raise _no_field(where, text_field, record, param)
                yield row, _checked(record[text_field], where, text_field, param)


def _parse_json(line: bytes, where: str, param: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataInvalid(f"'{where}' is not JSON: {error}", param=param) from error
    if not isinstance(record, dict):
        raise DataInvalid(f"'{where}' is not a JSON object.", param=param)
    return record


def _parquet_rows(file: Path, path: str, text_field: str, param: str) -> Iterator[tuple[int, str]]:
    with parquet.ParquetFile(file) as table:
        columns = table.schema_arrow.names
        if text_field not in columns:
            raise _no_field(path, text_field, columns, param)
        row = 0
        for batch in table.iter_batches(PARQUET_ROWS, columns=[text_field]):
            for value in batch.column(0).to_pylist():
                row += 1
                yield row, _checked(value, f"{path}:{row}", text_field, param)


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
        raise DataInvalid(f"'{where}' holds half a character: {error}", param=param) from error
    if size > MAX_DOCUMENT_BYTES:
        raise _too_large(where, param)
    return value


def _no_field(where: str, text_field: str, fields: Iterable[str], param: str) -> DataInvalid:
    names = ", ".join(f"'{name}'" for name in islice(fields, MAX_NAMES_SHOWN))
    return DataInvalid(
        f"'{where}' has no field '{text_field}'; it has: {names or 'none'}.",
        param=f"{param}.text_field",
    )


def _too_large(where: str, param: str) -> DataInvalid:
    return DataInvalid(
        f"'{where}' is larger than {MAX_DOCUMENT_BYTES} bytes; cut it into several documents.",
        param=param,
    )

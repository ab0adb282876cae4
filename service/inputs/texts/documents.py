"""Reads documents and records from files. Each text file, JSONL line or Parquet row is a document.
Each JSONL line or Parquet row is a record, with the fields that the caller requests.

A file that is no UTF-8 text, holds data that is not read, or is a link that leads out of the folder
is an error if the pattern names it. If a wildcard selects it, the file is skipped, counted and
reported: a picture beside the texts or one file in an old encoding is no reason to fail. A JSONL or
Parquet file must always be readable. Documents without any text are left out.

A submission's check reads the beginnings of the first files in the same way. What it refuses, a
worker would refuse in the same words.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from service.errors import DataInvalid, DataNotFound, PathNotAllowed
from service.inputs.glob import has_wildcard, selected_files
from service.inputs.opening import open_path
from service.inputs.texts.rows import Chat
from service.inputs.texts.text_files import READING_ERRORS, FileReader, NotText, record_size

MAX_DOCUMENTS = 10_000_000
MAX_TEXT_BYTES = 4 * 2**30
"""All documents are in a worker's memory at once, and far fewer calibrate any model."""
CHECKED_FILES = 8
"""The files that a submission's check opens, at most."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Document:
    """A text and where it stands: ``file`` or ``file:row``, rows counted from 1."""

    id: str
    text: str


Render = Callable[[Chat, str], str]
"""Makes a text of the chat of a row, given where the row stands. It may raise DataInvalid."""


@dataclass
class Skipped:
    """What reading leaves out."""

    files: dict[str, str] = field(default_factory=dict)  # the reasons by the paths
    empty_rows: int = 0  # and files without text


@dataclass(frozen=True)
class Record:
    """A JSONL line or Parquet row: ``file:row``, rows counted from 1, and its fields."""

    id: str
    fields: Mapping[str, Any]  # only the requested ones


@dataclass(frozen=True)
class _Selection:
    """Files to read, by their paths below the folder."""

    root: Path
    """The folder, or the one file."""
    pattern: str
    paths: list[str]
    is_all: bool
    """Whether these are all files that the pattern selects."""
    is_tolerant: bool
    """Whether files that are not text are skipped."""


def read_records(
    root: Path, pattern: str, params: Mapping[str, str], param: str
) -> Iterator[Record]:
    """Every JSONL line and Parquet row of one file, or of the files below a folder.

    `root` is a resolved path. `params` maps each field to read to the field of the request that
    names it. Raises `DataNotFound` if the pattern selects nothing, `PathNotAllowed` for a link that
    leads out of `root`, and `DataInvalid` for files of another kind and for rows that cannot be
    read, lack a field or exceed a bound. The size of a row is that of its fields as JSON.
    """
    with FileReader(param) as reader:
        yield from _records(reader, _select(root, pattern, param), params, param)


def check_records(root: Path, pattern: str, params: Mapping[str, str], param: str) -> None:
    """Raise what `read_records` would, if the beginnings of the first files show it."""
    with FileReader(param, only_checks=True) as reader:
        for _ in _records(reader, _select(root, pattern, param, CHECKED_FILES), params, param):
            pass


def read_documents(
    root: Path,
    pattern: str,
    text_field: str,
    param: str,
    *,
    render: Render | None = None,
    skipped: Skipped | None = None,
) -> Iterator[Document]:
    """Every document of one file, or of the files below a folder in the order of their paths.

    `root` is a resolved path. `render` makes a text of each chat; without it, chats are refused.
    What is left out is counted in `skipped`. Raises `DataNotFound` if the pattern selects nothing,
    `PathNotAllowed` if it names a link that leads out of `root`, and `DataInvalid` for text that
    cannot be read, exceeds a bound or is missing.
    """
    selection = _select(root, pattern, param)
    skipped = Skipped() if skipped is None else skipped
    with FileReader(param) as reader:
        yield from _documents(reader, selection, text_field, param, render, skipped)
    if skipped.files:
        count, first = len(selection.paths), next(iter(skipped.files))
        _log.warning("%d of %d files skipped, '%s' first", len(skipped.files), count, first)


def check_documents(root: Path, pattern: str, text_field: str, param: str) -> None:
    """Raise what `read_documents` would, if the beginnings of the first files show it."""
    selection = _select(root, pattern, param, CHECKED_FILES)
    with FileReader(param, only_checks=True) as reader:
        for _ in _documents(reader, selection, text_field, param, _unrendered, Skipped()):
            pass


def _select(root: Path, pattern: str, param: str, limit: int | None = None) -> _Selection:
    """The files to read in the order of their paths: all, or the first `limit` to be found."""
    if root.is_file():
        return _Selection(root, pattern, [root.name], is_all=True, is_tolerant=False)
    if not root.is_dir():
        raise DataNotFound(f"There is no text at {root}.", param=param)
    try:
        paths = list(islice(selected_files(root, pattern), limit and limit + 1))
    except OSError as error:
        raise DataInvalid(f"A folder below {root} cannot be read: {error}", param=param) from error
    if not paths:
        raise DataNotFound(f"No file below {root} matches '{pattern}'.", param=f"{param}.pattern")
    is_all = limit is None or len(paths) <= limit
    return _Selection(root, pattern, sorted(paths[:limit]), is_all, has_wildcard(pattern))


def _records(
    reader: FileReader, selection: _Selection, params: Mapping[str, str], param: str
) -> Iterator[Record]:
    count = size = 0
    for path in selection.paths:
        try:
            with _opened(selection.root, path, param) as file:
                for row, fields in reader.records(file, path, params):
                    where = f"{path}:{row}"
                    count, size = count + 1, size + record_size(fields, where, param)
                    _check_bounds(count, size, param)
                    yield Record(where, fields)
        except NotText as reason:
            raise _refusal(reason, path, param) from reason
        except READING_ERRORS as error:
            raise _unreadable(path, error, param) from error


def _documents(
    reader: FileReader,
    selection: _Selection,
    text_field: str,
    param: str,
    render: Render | None,
    skipped: Skipped,
) -> Iterator[Document]:
    found = False
    rows = size = 0
    for path in selection.paths:
        try:
            with _opened(selection.root, path, param) as file:
                for row, found_text in reader.texts(file, path, text_field):
                    where = path if row is None else f"{path}:{row}"
                    text = _rendered(found_text, where, render, param)
                    rows, size = rows + 1, size + len(text.encode())
                    _check_bounds(rows, size, param)
                    if text.strip():
                        found = True
                        yield Document(where, text)
                    else:
                        skipped.empty_rows += 1
        except (NotText, PathNotAllowed) as reason:
            if not selection.is_tolerant:
                raise _refusal(reason, path, param) from reason
            skipped.files[path] = str(reason).rstrip(".")
        except READING_ERRORS as error:
            raise _unreadable(path, error, param) from error
    if not found and selection.is_all and reader.saw_all:
        raise _no_text(selection, skipped, param)


def _rendered(text: str | Chat, where: str, render: Render | None, param: str) -> str:
    if isinstance(text, str):
        return text
    if render is None:
        raise DataInvalid(f"'{where}' is a chat, which only jobs read.", param=param)
    return render(text, where)


def _unrendered(_chat: Chat, _where: str) -> str:
    """A text in a chat's place, where only its form is checked."""
    return "a chat"


def _no_text(selection: _Selection, skipped: Skipped, param: str) -> DataInvalid:
    first, *others = selection.paths
    where = (
        f"the {len(others) + 1} files that '{selection.pattern}' selects"
        if others
        else f"'{first}'"
    )
    reasons = islice(skipped.files.items(), 1)
    why = "".join(f" '{path}' was skipped: {reason}." for path, reason in reasons)
    return DataInvalid(f"There is no text in {where}.{why}", param=param)


def _refusal(reason: NotText | PathNotAllowed, path: str, param: str) -> Exception:
    if isinstance(reason, PathNotAllowed):
        return reason
    return DataInvalid(f"'{path}' cannot be read as text: {reason}.", param=param)


def _unreadable(path: str, error: Exception, param: str) -> DataInvalid:
    return DataInvalid(f"'{path}' cannot be read: {error}", param=param)


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


def _opened(root: Path, path: str, param: str) -> AbstractContextManager[Path]:
    """A file of the folder `root`, or `root` itself, as a path that leads to what was opened."""
    try:
        file = (root if root.is_file() else root / path).resolve()
    except (OSError, RuntimeError) as error:  # a loop of links
        raise NotText("it is a broken link") from error
    if not file.is_relative_to(root):
        raise PathNotAllowed(f"'{path}' is a link that leads out of {root}.", param=param)
    if not file.is_file():
        raise NotText("it is not a regular file")
    return open_path(file)

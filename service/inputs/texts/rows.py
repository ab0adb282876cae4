"""Rows of JSONL and Parquet: their fields, and the text or the chat that one of them holds.

A chat is a list of messages, each an object with a `role` and a `content`. It stands in the field
that the request names, or in `messages` if the row lacks that field. It becomes text by the chat
template of the model that reads it, so it is passed on as it is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from service.errors import DataInvalid

MAX_DOCUMENT_BYTES = 64 * 2**20
MAX_NAMES_SHOWN = 20
MAX_SHOWN_CHARACTERS = 80
"""Of the names of a row's fields."""

MESSAGES_FIELD = "messages"
"""Where a row's chat stands if the row lacks the field that the request names."""
MESSAGE = frozenset({"role", "content"})
OTHER_MESSAGE = frozenset({"from", "value"})
"""The fields of a message in another form, which is not read."""
OTHER_HINT = (
    " A chat is a list of objects with 'role' and 'content': rename 'from' to 'role', with the "
    "roles of the model's chat template, and 'value' to 'content'."
)


@dataclass(frozen=True)
class Chat:
    """The messages of a conversation, in order, without fields that are null."""

    messages: Sequence[Mapping[str, Any]]


def parse_row(line: bytes, where: str, param: str | None) -> dict[str, Any]:
    """The object on a line of JSONL. Raises DataInvalid about `param`."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataInvalid(f"'{where}': {not_utf8(line, error)}.", param=param) from error
    except (ValueError, RecursionError) as error:
        raise DataInvalid(
            f"'{where}' is not JSON: {error}. Each line must be a JSON object.", param=param
        ) from error
    if not isinstance(record, dict):
        raise DataInvalid(f"'{where}' is not a JSON object, as each line must be.", param=param)
    return record


def text_of(record: Mapping[str, Any], where: str, text_field: str, param: str) -> str | Chat:
    """The text or the chat of a row; what is null or has no message is an empty text.

    `param` is the field of the request that names `text_field`. Raises DataInvalid about it.
    """
    name = text_field_in(record, text_field, lambda value: value in (None, []) or is_chat(value))
    check_fields(where, {name: param}, record, is_other_chat)
    value = record[name]
    if value is None or value == []:
        return ""
    if isinstance(value, str):
        check_text(value, where, param)
        return value
    if name == MESSAGES_FIELD or is_chat(value):
        return _chat(value, where, name, param)
    raise not_text(name, where, type(value).__name__, is_other_chat(value), param)


def text_field_in(
    fields: Mapping[str, Any], text_field: str, holds_chat: Callable[[Any], bool]
) -> str:
    """The field to read: the one that is named, or that of the chat if a row lacks it."""
    has_chat = MESSAGES_FIELD in fields and holds_chat(fields[MESSAGES_FIELD])
    return MESSAGES_FIELD if has_chat and text_field not in fields else text_field


def check_text(text: str, where: str, param: str) -> None:
    """Raise DataInvalid for a text that is no Unicode, or too large."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise half_a_character(where, error, param) from error
    if size > MAX_DOCUMENT_BYTES:
        raise too_large(where, MAX_DOCUMENT_BYTES, param)


def check_fields(
    where: str,
    params: Mapping[str, str],
    fields: Mapping[str, Any],
    is_other: Callable[[Any], bool],
) -> None:
    """Raise unless the row or file at `where` has all fields that the request names.

    `is_other` tells whether a field holds a chat in a form that is not read.
    """
    for wanted, param in params.items():
        if wanted not in fields:
            shown = (name[:MAX_SHOWN_CHARACTERS] for name in islice(fields, MAX_NAMES_SHOWN))
            names = ", ".join(f"'{name}'" for name in shown)
            hint = f" Name the right one in {param}." if param.endswith("_field") else ""
            raise DataInvalid(
                f"'{where}' has no field '{wanted}'; it has: {names or 'none'}."
                f"{OTHER_HINT if any(map(is_other, fields.values())) else hint}",
                param=param,
            )


def is_chat(value: object) -> bool:
    """Whether a list begins as a chat does."""
    return isinstance(value, list) and bool(value) and _has(value[0], MESSAGE)


def is_other_chat(value: object) -> bool:
    """Whether a value is a chat in a form that is not read."""
    first = value[0] if isinstance(value, list) and value else value
    return _has(first, OTHER_MESSAGE)


def not_text(name: str, where: str, kind: str, is_other: bool, param: str) -> DataInvalid:
    hint = OTHER_HINT if is_other else ""
    return DataInvalid(f"'{name}' of '{where}' is {kind}, not text.{hint}", param=param)


def too_large(where: str, bound: int, param: str | None) -> DataInvalid:
    return DataInvalid(
        f"'{where}' is larger than {bound} bytes; cut it into several documents.", param=param
    )


def half_a_character(where: str, error: UnicodeEncodeError, param: str) -> DataInvalid:
    return DataInvalid(f"'{where}' contains half a character: {error}", param=param)


def not_utf8(data: bytes, error: UnicodeDecodeError, start: int = 0) -> str:
    """Why `data`, which begins at position `start`, is no text."""
    byte = f"byte 0x{data[error.start]:02x} at position {start + error.start}"
    return f"it is not UTF-8 ({byte}); if it is text, convert it to UTF-8"


def _chat(value: object, where: str, name: str, param: str) -> Chat:
    if not isinstance(value, list):
        raise not_text(name, where, type(value).__name__, is_other_chat(value), param)
    messages = [
        _message(message, f"message {number} of '{name}' in '{where}'", param)
        for number, message in enumerate(value, start=1)
    ]
    check_text("".join(message["content"] for message in messages), where, param)
    return Chat(messages)


def _message(message: object, where: str, param: str) -> Mapping[str, Any]:
    if not isinstance(message, dict):
        raise DataInvalid(
            f"{where} is {type(message).__name__}, not an object with 'role' and 'content'.",
            param=param,
        )
    for field in ("role", "content"):
        found = message.get(field)
        if not isinstance(found, str) or (field == "role" and not found):
            kind = "missing" if found is None else f"{type(found).__name__}, not text"
            kind = "empty" if found == "" else kind
            hint = OTHER_HINT if is_other_chat(message) else ""
            raise DataInvalid(f"'{field}' of {where} is {kind}.{hint}", param=param)
    return {field: value for field, value in message.items() if value is not None}


def _has(fields: object, names: frozenset[str]) -> bool:
    return isinstance(fields, dict) and fields.keys() >= names

"""Reads a JSON object member by member, so that other threads run in between.

`json.loads` holds Python's lock for as long as it parses, which for 30 MB is seconds. The parser is
the same here, but it gets one value at a time, and values are bounded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from threading import Lock
from typing import Any

MAX_VALUE_CHARACTERS = 128 * 1024
"""Of one value; real ones have hundreds, and the free text of a header some thousands."""
FIRST_LOOK = 1024
"""Characters that nearly every value fits into; the parser gets a copy."""

TURN = Lock()
"""Held while JSON is parsed. Python runs one thread at a time, so several that parse side by side
are no faster, but each of them delays the threads that only answer."""

_BLANK = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def read_object(text: str, visit: Callable[[str, int], int]) -> None:
    """Visit the members of the object that is the whole text, as `read_members` does.

    Raises ValueError if the text is something else.
    """
    with TURN:
        end = _after_blank(text, read_members(text, 0, visit))
    if end != len(text):
        raise ValueError(f"Extra data at character {end}")


def read_members(text: str, at: int, visit: Callable[[str, int], int]) -> int:
    """Visit each member of the object at this position; returns the position after the object.

    `visit` gets the key and the position of the value, and returns the position after the value.
    Raises ValueError for what is not an object.
    """
    at = _after(text, at, "{")
    if text.startswith("}", at):
        return at + 1
    while True:
        key, at = read_value(text, at)
        if not isinstance(key, str):
            raise ValueError(f"Expecting property name at character {at}")
        at = _after_blank(text, visit(key, _after(text, at, ":")))
        if text.startswith("}", at):
            return at + 1
        at = _after(text, at, ",")


def read_value(text: str, at: int) -> tuple[Any, int]:
    """The value at this position, and the position after it. Raises ValueError."""
    for length in (FIRST_LOOK, MAX_VALUE_CHARACTERS):
        part = text[at : at + length]
        try:
            value, end = _DECODER.raw_decode(part)
        except RecursionError:
            raise ValueError(f"Nested too deeply at character {at}") from None
        except json.JSONDecodeError as error:
            problem = f"{error.msg} at character {at + error.pos}"
        else:
            if end < len(part):  # a number at the end of the part may go on behind it
                return value, at + end
            problem = f"The text ends at character {at + end}"
        if at + length >= len(text):
            raise ValueError(problem)
    raise ValueError(f"The value at character {at} is longer than {MAX_VALUE_CHARACTERS}")


def _after(text: str, at: int, mark: str) -> int:
    """The position after this mark and the blanks around it."""
    at = _after_blank(text, at)
    if not text.startswith(mark, at):
        raise ValueError(f"Expecting '{mark}' at character {at}")
    return _after_blank(text, at + 1)


def _after_blank(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return at if blank is None else blank.end()

"""Text of strangers in messages: names of files, values of requests, lines of logs.

Such text may hold control characters, which command a terminal, or half a character, which no
UTF-8 has: a file name of other bytes, or "\\ud800" in JSON.
"""

from __future__ import annotations

import re

LAYOUT = "\n\t"
MAX_SHOWN_CHARACTERS = 80

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def printable(text: str) -> str:
    r"""The text with its invisible characters escaped as in Python, except line feeds and tabs.

    >>> print(printable("\x1b[2J\udcff"))
    \x1b[2J\udcff
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in LAYOUT else each.encode("unicode_escape").decode()
        for each in text
    )


def uncoloured(text: str) -> str:
    """The text without a terminal's codes for colours."""
    return _COLOUR.sub("", text)


def one_line(text: str) -> str:
    r"""The text with its line feeds and tabs escaped, too."""
    return text.replace("\n", r"\n").replace("\t", r"\t")


def shortened(text: str, most: int = MAX_SHOWN_CHARACTERS) -> str:
    """The text, cut if it is longer than `most` characters."""
    return text if len(text) <= most else f"{text[:most]}…"

"""Cursors of pages. They are opaque on purpose: their content may change."""

from __future__ import annotations

import base64
import binascii
import re

from service.errors import InvalidParameter


def encode_cursor(last: str) -> str:
    """The cursor of the page after the one that ends with this id."""
    return base64.urlsafe_b64encode(last.encode()).decode()


def decode_cursor(cursor: str | None, pattern: str) -> str | None:
    """The id in the cursor, which matches `pattern`; None for the first page.

    :raises InvalidParameter: it is not a cursor that `encode_cursor` made
    """
    if cursor is None:
        return None
    try:
        last = base64.b64decode(cursor, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        last = ""
    if not re.fullmatch(pattern, last):
        raise InvalidParameter(
            "cursor: not a cursor of this server; take `next_cursor` from a page of this list",
            param="cursor",
        )
    return last

"""Streams of server-sent events, as text and as connections that may break."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

MEDIA_TYPE = "text/event-stream"
END = "end"
"""The type of a stream's last frame."""
ENDED = (f"event: {END}", "data: {}", "")
"""The lines of a stream that ends at once."""
SILENT_SECONDS = 45.0
"""A connection without even a heartbeat, which the server sends every 15 seconds, is broken."""


@dataclass(frozen=True)
class Frame:
    """One event of a stream."""

    type: str
    data: str


def frames(lines: Iterable[str]) -> Iterator[Frame]:
    """The whole frames of a stream; comments, ids and retry times are left out.

    >>> list(frames(["retry: 1", "", ": ping", "event: end", "data: 1", "data: 2", "", "data: 3"]))
    [Frame(type='end', data='1\\n2')]
    """
    kind, data = "", list[str]()
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            kind = value
        elif name == "data":
            data.append(value)
        elif not line:
            if data:
                yield Frame(kind, "\n".join(data))
            kind, data = "", []

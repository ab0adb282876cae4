"""Follows a job's events and logs over interruptions; streams of server-sent events as text."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from service.client import http
from service.client.answers import Event, LogPage
from service.client.calls import Call, NotOurs, Reply, job_path
from service.client.client import Client
from service.client.errors import ClientError
from service.client.patience import Watching

MEDIA_TYPE = "text/event-stream"
END = "end"
"""The type of a stream's last frame."""
ENDED = (f"event: {END}", "data: {}", "")
"""The lines of a stream that ends at once."""
RECONNECT_SECONDS = 1.0
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


def events(
    client: Client, job_id: str, after: int = 0, *, patience_seconds: float = 60.0
) -> Iterator[Event]:
    """The job's events after the one with the id `after`, as they happen, each of them once.

    Ends when the job has ended or was deleted. An interruption may last `patience_seconds`.
    """
    patience = Watching(patience_seconds, RECONNECT_SECONDS)
    while True:
        try:
            with _stream(client, job_id, after) as lines:
                for frame in frames(lines):
                    patience.pause_after_answer()
                    if frame.type == END:
                        return
                    event: Event = json.loads(frame.data)
                    after = event["id"]
                    yield event
        except ClientError as error:
            time.sleep(patience.pause_after(error))
        else:  # the server ended the stream, as at its restart
            time.sleep(RECONNECT_SECONDS)


def logs(
    client: Client,
    job_id: str,
    attempt: int | None = None,
    source: str = "driver",
    *,
    poll_seconds: float = 1.0,
    patience_seconds: float = 60.0,
) -> Iterator[LogPage]:
    """The parts of the log of one attempt until it is complete; those between may be empty.

    Without an `attempt`, it is the last one when there is one. An outage may last
    `patience_seconds`.
    """
    patience = Watching(patience_seconds, poll_seconds)
    after = 0
    while True:
        try:
            page = client.logs(job_id, attempt, source, after)
        except ClientError as error:
            time.sleep(patience.pause_after(error))
            continue
        pause = patience.pause_after_answer()
        yield page
        if page["complete"]:
            return
        attempt, after = page["attempt"] or attempt, page["next_after"]
        if not page["text"]:
            time.sleep(pause)


@contextmanager
def _stream(client: Client, job_id: str, after: int) -> Iterator[Iterable[str]]:
    """The lines of a stream of events; that of a job that has ended may be an end at once."""
    headers = {"Accept": MEDIA_TYPE, "Last-Event-ID": str(after)}
    usual = client.connection.timeout
    timeout = httpx.Timeout(
        connect=usual.connect, read=SILENT_SECONDS, write=usual.write, pool=usual.pool
    )
    path = job_path(job_id, "events")
    try:
        with client.connection.stream("GET", path, headers=headers, timeout=timeout) as response:
            media_type = response.headers.get("Content-Type", "").partition(";")[0]
            if response.status_code == httpx.codes.NO_CONTENT:
                yield ENDED
            elif response.is_success and media_type == MEDIA_TYPE:
                yield response.iter_lines()
            else:
                response.read()
                http.read(Call("GET", path, _no_stream), response, client.base_url)
    except httpx.TransportError as error:
        raise http.unreachable(error, client.base_url) from error


def _no_stream(_reply: Reply) -> None:
    raise NotOurs

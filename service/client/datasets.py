"""The operations on datasets, for `Client.send` and `AsyncClient.send`; and their upload."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO
from urllib.parse import quote

import httpx

from service.client import http
from service.client.answers import Dataset, DatasetPage
from service.client.calls import Call, as_object
from service.client.client import Client

UPLOAD_SECONDS = 300.0
"""How long an upload waits for the server; at the end that checks and stores what is left."""
PIECE_BYTES = 2**18


def datasets(limit: int, cursor: str | None = None) -> Call[DatasetPage]:
    """One page, newest first."""
    query = {"limit": limit} | ({"cursor": cursor} if cursor else {})
    return Call("GET", "/v1/datasets", as_object, query)


def dataset(dataset_id: str) -> Call[Dataset]:
    return Call("GET", _path(dataset_id), as_object)


def delete(dataset_id: str) -> Call[None]:
    """Delete a dataset, unless a job that waits or runs uses it."""
    return Call("DELETE", _path(dataset_id), lambda _reply: None)


def upload(
    client: Client,
    file: Path,
    kind: str,
    *,
    name: str | None = None,
    text_field: str | None = None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Dataset:
    """Upload a file of the format `kind`: ``text``, ``jsonl`` or ``parquet``.

    Calls `on_progress` with the bytes sent so far and those in all. Raises ApiProblem and
    ApiUnreachable.
    """
    query = {"format": kind, "name": name, "text_field": text_field}
    given = {key: value for key, value in query.items() if value is not None}
    call: Call[Dataset] = Call("POST", "/v1/datasets", as_object, given)
    with file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        try:
            response = client.connection.post(
                call.path,
                params=given,
                content=_pieces(stream, size, on_progress),
                headers=headers,
                timeout=UPLOAD_SECONDS,
            )
        except httpx.TransportError as error:
            raise http.unreachable(error, client.base_url) from error
    return http.read(call, response, client.base_url)


def _pieces(
    stream: IO[bytes], size: int, on_progress: Callable[[int, int], None]
) -> Iterator[bytes]:
    """The first `size` bytes of a file, which may grow meanwhile."""
    done = 0
    while piece := stream.read(min(PIECE_BYTES, size - done)):
        yield piece
        done += len(piece)
        on_progress(done, size)


def _path(dataset_id: str) -> str:
    return f"/v1/datasets/{quote(dataset_id, safe='', errors='replace')}"

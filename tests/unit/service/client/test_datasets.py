"""Datasets are uploaded piece by piece, listed, read and deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from service.client import datasets
from tests.unit.service.client.test_client import answering


def test_an_upload_sends_the_file_as_it_is_and_says_how_far_it_is(tmp_path: Path) -> None:
    client, requests = answering(httpx.Response(201, json={"id": "ds-1"}))
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"x" * 600_000)
    progress: list[tuple[int, int]] = []
    made = datasets.upload(
        client, file, "jsonl", text_field="body", on_progress=lambda *each: progress.append(each)
    )
    assert made["id"] == "ds-1"
    assert str(requests[0].url) == "http://server/v1/datasets?format=jsonl&text_field=body"
    assert requests[0].read() == file.read_bytes()
    assert requests[0].headers["content-length"] == "600000"
    assert "transfer-encoding" not in requests[0].headers
    assert [done for done, _ in progress] == [262_144, 524_288, 600_000]
    assert {total for _, total in progress} == {600_000}


def test_datasets_are_listed_read_and_deleted() -> None:
    page: dict[str, Any] = {"datasets": [], "next_cursor": None}
    answers = (httpx.Response(200, json=page), httpx.Response(200, json={"id": "ds-1"}))
    client, requests = answering(*answers, httpx.Response(204))
    assert client.send(datasets.datasets(5, "next")) == page
    assert client.send(datasets.dataset("ds-1"))["id"] == "ds-1"
    client.send(datasets.delete("ds-1/.."))
    assert [f"{each.method} {each.url.raw_path.decode()}" for each in requests] == [
        "GET /v1/datasets?limit=5&cursor=next",
        "GET /v1/datasets/ds-1",
        "DELETE /v1/datasets/ds-1%2F..",
    ]

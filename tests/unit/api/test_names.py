"""No name that a request or a file carries makes the server fail, or reaches its answer raw."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from service.store.store import Store

ODD = ["\x1b[2J", "\ud800", "\0", "a\nb", "\u202e", "\x9b", "\udcff"]
JSON = {"Content-Type": "application/json"}

FIELDS = [
    "name",
    "method",
    "model.source",
    "model.path",
    "calibration.data.path",
    "calibration.data.pattern",
    "calibration.data.text_field",
    "\x1b\ud800",
    "model.\x1b\ud800",
]
SOURCES = [
    {"source": "s3", "uri": "s3://models/{}"},
    {"source": "hub", "id": "org/{}", "revision": "0" * 40},
    {"source": "hub", "id": "org/model", "revision": "{}"},
]


def _post(client: TestClient, body: dict[str, Any]) -> Any:
    response = client.post("/v1/jobs", content=json.dumps(body), headers=JSON)
    _check(response)
    return response


def _check(response: Any) -> None:
    """The answer is one of ours; its text has nothing to command a terminal with."""
    assert response.status_code < 500, response.text
    shown = [problem["detail"] for problem in _problems(response.json())]
    assert all(text.replace("\n", "").isprintable() for text in shown), shown


def _rename(file: Path, name: bytes) -> None:
    file.rename(file.with_name(os.fsdecode(name)))


def _problems(answer: dict[str, Any]) -> list[dict[str, Any]]:
    return [answer, *answer["errors"]] if "errors" in answer else []


@pytest.mark.parametrize("odd", ODD, ids=ascii)
@pytest.mark.parametrize("field", FIELDS, ids=ascii)
def test_odd_characters_in_a_field(
    client: TestClient, job_body: dict[str, Any], field: str, odd: str
) -> None:
    *path, last = field.split(".")
    place = job_body
    for part in path:
        place = place[part]
    place[last] = f"{place.get(last, '')}{odd}"
    _post(client, job_body)


@pytest.mark.parametrize("odd", ODD, ids=ascii)
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_odd_characters_in_a_source(
    client: TestClient, job_body: dict[str, Any], source: dict[str, str], odd: str
) -> None:
    job_body["calibration"]["data"]["path"] = "/nowhere"
    job_body["model"] = {key: value.replace("{}", f"m{odd}") for key, value in source.items()}
    if source["source"] == "s3":
        job_body["targets"] = []  # so that no bucket is asked
    _post(client, job_body)


@pytest.mark.parametrize("odd", [b"\xff.safetensors", b"\x1b[2J.safetensors"])
def test_odd_names_of_files(
    client: TestClient, job_body: dict[str, Any], model_folder: Path, odd: bytes
) -> None:
    _rename(model_folder / "model.safetensors", odd)
    assert _post(client, job_body).json()["code"] == "model_invalid"


@pytest.mark.parametrize("odd", [b"\xff.bin", b"\x1b[2J.bin"])
def test_an_odd_name_that_is_shown(
    client: TestClient, job_body: dict[str, Any], model_folder: Path, odd: bytes
) -> None:
    _rename(model_folder / "model.safetensors", odd)
    assert _post(client, job_body).json()["code"] == "unsafe_weights"


@pytest.mark.parametrize("odd", [b"\xff", b"\x1b[2J"])
def test_an_odd_name_among_texts(
    client: TestClient, job_body: dict[str, Any], text_folder: Path, odd: bytes
) -> None:
    _rename(text_folder / "text.txt", odd)
    assert _post(client, job_body).status_code == 201
    job_body["calibration"]["data"]["pattern"] = "*.txt"
    assert _post(client, job_body).json()["code"] == "data_not_found"


def test_an_odd_name_of_a_tensor(
    client: TestClient, job_body: dict[str, Any], model_folder: Path
) -> None:
    header = json.dumps({"\x1b\ud800": 1}).encode()
    content = len(header).to_bytes(8, "little") + header
    (model_folder / "model.safetensors").write_bytes(content)
    problem = _post(client, job_body).json()
    assert r"'\x1b\ud800'" in problem["detail"]


def test_an_odd_architecture(
    client: TestClient, job_body: dict[str, Any], model_folder: Path
) -> None:
    config = {"architectures": ["\x1b\ud800" * 100_000]}
    (model_folder / "config.json").write_text(json.dumps(config))
    problem = _post(client, job_body).json()
    assert len(problem["detail"]) < 300


@pytest.mark.parametrize("path", ["%ff", "%1b%5b2J", "%00", "%ed%a0%80", "x" * 10_000])
def test_odd_paths(client: TestClient, path: str) -> None:
    for url in (f"/v1/jobs/{path}", f"/v1/jobs/{path}/events", f"/{path}"):
        response = client.get(url)
        assert response.status_code == 404
        assert response.json()["detail"].isprintable()
        assert response.json()["instance"].isprintable()
        assert len(response.content) < 2000


@pytest.mark.parametrize("value", ["%ff", "%1b", "%00", "x" * 10_000])
def test_odd_queries(client: TestClient, value: str) -> None:
    for name in ("cursor", "state", "limit"):
        response = client.get(f"/v1/jobs?{name}={value}")
        assert response.status_code == 422
        assert len(response.content) < 2000


def test_many_states(client: TestClient) -> None:
    query = "&".join(["state=queued"] * 2000)
    assert client.get(f"/v1/jobs?{query}").json()["param"] == "state"


def test_what_an_event_carries(client: TestClient, store: Store, job_body: dict[str, Any]) -> None:
    job_id = client.post("/v1/jobs", json=job_body).json()["id"]
    assert store.claims.claim()
    store.attempts.record(job_id, 1, "note", "\x1b\ud800", {"\ud800": ["\x1b\ud800"]})
    event = client.get(f"/v1/jobs/{job_id}/events").json()["events"][-1]
    assert (event["message"], event["data"]) == (r"\x1b\ud800", {r"\ud800": ["\x1b\\ud800"]})

"""No request, however it is made, keeps the API from answering others at once."""

from __future__ import annotations

import json
import socket
import statistics
import struct
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

from api.limits import MAX_BODY_BYTES
from service.inputs.models.files import INDEX_NAME, MAX_INDEX_BYTES
from service.settings import Settings
from service.standalone.ports import LOOPBACK, choose_port
from service.standalone.serve import environment
from service.standalone.subprocesses import Child
from tests.fixtures.waiting import wait_until

JSON = {"Content-Type": "application/json"}
TEXTS = 20_000
PROBES = 60
PAUSE_SECONDS = 0.2
"""Between two requests of an attacker: each request must be light, however many there are."""
MEDIAN_SECONDS = 0.1
LONGEST_SECONDS = 1.0
TRIES = 3
"""The machine may be busy with other things."""

Attack = Callable[[Path, dict[str, Any]], bytes]
"""Makes the body of a request, from the folder of a model and the body of a valid job."""


def _many_dimensions(folder: Path, body: dict[str, Any]) -> bytes:
    shape = b"1," * 400_000 + b"1"
    header = b'{"w":{"dtype":"U8","data_offsets":[0,1],"shape":[' + shape + b"]}}"
    return _with_weights(folder, body, header)


def _many_tensors(folder: Path, body: dict[str, Any]) -> bytes:
    entry = '"{0}":{{"dtype":"U8","shape":[1],"data_offsets":[{0},{1}]}}'
    header = ",".join(entry.format(number, number + 1) for number in range(150_000))
    return _with_weights(folder, body, b"{" + header.encode() + b"}")


def _with_weights(folder: Path, body: dict[str, Any], header: bytes) -> bytes:
    content = struct.pack("<Q", len(header)) + header + bytes(1)
    (folder / "model.safetensors").write_bytes(content)
    return json.dumps(body).encode()


def _wrong_index(folder: Path, body: dict[str, Any]) -> bytes:
    entries = b",".join(b'"%d":1' % number for number in range(3_000_000))
    return _with_index(folder, body, entries[: MAX_INDEX_BYTES - 100])


def _long_index(folder: Path, body: dict[str, Any]) -> bytes:
    (folder / "a.safetensors").write_bytes(struct.pack("<Q", 2) + b"{}")
    entries = b",".join(b'"%d":"a.safetensors"' % number for number in range(200_000))
    return _with_index(folder, body, entries)


def _with_index(folder: Path, body: dict[str, Any], entries: bytes) -> bytes:
    (folder / "model.safetensors").unlink()
    (folder / INDEX_NAME).write_bytes(b'{"weight_map":{' + entries + b"}}")
    return json.dumps(body).encode()


def _large_config(folder: Path, body: dict[str, Any]) -> bytes:
    (folder / "config.json").write_bytes(b'{"architectures":[' + b"[]," * 80_000 + b"[]]}")
    return json.dumps(body).encode()


def _many_folders(_folder: Path, body: dict[str, Any]) -> bytes:
    body["calibration"]["data"]["pattern"] = "**/" * 170 + "x"
    return json.dumps(body).encode()


def _many_targets(_folder: Path, body: dict[str, Any]) -> bytes:
    return json.dumps(body | {"targets": [1] * 500_000}).encode()


def _as_many_targets_as_fit(_folder: Path, body: dict[str, Any]) -> bytes:
    text = json.dumps(body | {"targets": []}, separators=(",", ":")).encode()
    return text.replace(b"[]", b"[" + b"{}," * ((MAX_BODY_BYTES - len(text)) // 3 - 2) + b"{}]")


def _many_fields(_folder: Path, body: dict[str, Any]) -> bytes:
    return json.dumps(body | {str(number): 1 for number in range(MAX_BODY_BYTES // 14)}).encode()


def _many_brackets(_folder: Path, _body: dict[str, Any]) -> bytes:
    return b"[" * MAX_BODY_BYTES


ATTACKS: tuple[Attack, ...] = (
    _many_dimensions,
    _many_tensors,
    _wrong_index,
    _long_index,
    _large_config,
    _many_folders,
    _many_targets,
    _as_many_targets_as_fit,
    _many_fields,
    _many_brackets,
)


@pytest.fixture
def bodies(model_folder: Path, job_body: dict[str, Any]) -> list[bytes]:
    """The bodies of all attacks; each has a model of its own."""
    made = []
    for attack in ATTACKS:
        folder = model_folder.with_name(attack.__name__)
        folder.mkdir()
        for file in model_folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        body = json.loads(json.dumps(job_body))
        body["model"]["path"] = str(folder)
        made.append(attack(folder, body))
    return made


@pytest.fixture
def many_texts(text_folder: Path) -> None:
    for number in range(TEXTS):
        folder = text_folder / str(number % 100)
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.txt").touch()


@pytest.fixture
def port(tmp_path: Path, allowed_root: Path) -> Iterator[int]:
    """Of an API in a process of its own, whose bucket and cluster do not answer."""
    nowhere = f"http://{LOOPBACK}:1"
    settings = Settings(
        data_dir=tmp_path / "data",
        allowed_roots=(allowed_root,),
        s3_endpoint_url=nowhere,
        ray_address=nowhere,
    )
    port = choose_port(0, "--port")
    command = [sys.executable, "-m", "uvicorn", "--factory", "api.app:create_app"]
    log = tmp_path / "api.log"
    with Child([*command, "--port", str(port)], environment(settings), log):
        with _client(port) as http:
            wait_until(lambda: _answers(http))
        yield port


def _client(port: int) -> httpx.Client:
    return httpx.Client(base_url=f"http://{LOOPBACK}:{port}", timeout=60, trust_env=False)


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/healthz").is_success
    except httpx.TransportError:
        return False


def _seconds(http: httpx.Client) -> float:
    """How long an answer takes."""
    begin = time.perf_counter()
    http.get("/healthz").raise_for_status()
    return time.perf_counter() - begin


@pytest.mark.usefixtures("many_texts")
def test_health_is_answered_at_once_under_all_attacks(port: int, bodies: list[bytes]) -> None:
    for _ in range(TRIES):
        took = _probe(port, bodies)
        quick = statistics.median(took) < MEDIAN_SECONDS and max(took) < LONGEST_SECONDS
        if quick:
            return
    raise AssertionError(f"median {statistics.median(took):.3f} s, longest {max(took):.3f} s")


def _probe(port: int, bodies: list[bytes]) -> list[float]:
    """How long /healthz took, again and again, while all attacks are repeated side by side."""
    stop = Event()

    def attack(body: bytes) -> set[int]:
        answers: set[int] = set()
        with _client(port) as http:
            while not (stop.is_set() and answers):
                answers.add(http.post("/v1/jobs", content=body, headers=JSON).status_code)
                stop.wait(PAUSE_SECONDS)
        return answers

    took = []
    with ExitStack() as open_connections, ThreadPoolExecutor(len(bodies)) as attackers:
        for _ in range(50):
            slow = open_connections.enter_context(socket.create_connection((LOOPBACK, port)))
            slow.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
        running = [attackers.submit(attack, body) for body in bodies]
        try:
            with _client(port) as http:
                for _ in range(PROBES):
                    took.append(_seconds(http))
                    stop.wait(PAUSE_SECONDS / 4)
        finally:
            stop.set()
        for future in running:
            assert future.result() <= {400, 413, 422, 503}
    return took

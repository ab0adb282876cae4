"""The key of `serve` goes to the address alone at which its server runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.client.credentials import (
    ADDRESS_FILE,
    ADMIN_KEY_FILE,
    held,
    key_of_server,
    running_server,
)

URL = "http://127.0.0.1:8400"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / ADMIN_KEY_FILE).write_text("ep_key\n")
    (tmp_path / ADDRESS_FILE).write_text(f"{URL}\n")
    with held(tmp_path / ADDRESS_FILE):
        yield tmp_path


def test_the_running_server_gets_its_key(folder: Path) -> None:
    assert running_server(folder) == URL
    assert key_of_server(URL, folder) == key_of_server(f"{URL}/", folder) == "ep_key"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8401",
        "http://127.0.0.2:8400",
        "https://127.0.0.1:8400",
        f"{URL}.evil.test",
    ],
)
def test_no_other_address_does(folder: Path, url: str) -> None:
    assert key_of_server(url, folder) is None


def test_a_server_that_has_ended_does_not(folder: Path) -> None:
    (folder / ADDRESS_FILE).unlink()
    assert running_server(folder) is None
    assert key_of_server(URL, folder) is None


def test_a_server_that_was_killed_does_not(tmp_path: Path) -> None:
    (tmp_path / ADMIN_KEY_FILE).write_text("ep_key\n")
    (tmp_path / ADDRESS_FILE).write_text(f"{URL}\n")
    assert running_server(tmp_path) is None
    assert key_of_server(URL, tmp_path) is None


def test_what_cannot_be_read_is_no_key(folder: Path) -> None:
    (folder / ADMIN_KEY_FILE).write_bytes(b"\xff")
    assert running_server(folder) == URL
    assert key_of_server(URL, folder) is None
    (folder / ADMIN_KEY_FILE).unlink()
    assert key_of_server(URL, folder) is None

"""`eigenpress tenants credentials`: secrets come from files and standard input alone."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.fixtures.command_line import TIME, Api, Eigenpress

HUB: dict[str, Any] = {
    "name": "hub",
    "kind": "hub",
    "endpoint": "https://hub.test",
    "prefixes": None,
    "region": None,
    "key_id_end": None,
    "created_at": TIME,
}
S3: dict[str, Any] = HUB | {
    "name": "bucket",
    "kind": "s3",
    "endpoint": None,
    "prefixes": ["s3://team-a/"],
    "key_id_end": "AB12",
}
ROUTE = "/v1/tenants/team-a/credentials"
COMMAND = ("tenants", "credentials")


@pytest.fixture(autouse=True)
def answers(api: Api) -> None:
    api.answers |= {
        f"PUT {ROUTE}/hub": (200, HUB),
        f"PUT {ROUTE}/bucket": (200, S3),
        f"GET {ROUTE}": (200, {"credentials": [S3, HUB]}),
        f"DELETE {ROUTE}/hub": (200, {}),
    }


def test_a_token_comes_from_standard_input(
    api: Api, eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("canary-token\n"))
    assert eigenpress(*COMMAND, "put-hub", "team-a", "hub", "--endpoint", "https://hub.test") == 0
    assert api.bodies == [{"kind": "hub", "token": "canary-token", "endpoint": "https://hub.test"}]
    assert "canary" not in eigenpress.out + eigenpress.err
    assert "https://hub.test" in eigenpress.out


def test_keys_come_from_files(api: Api, eigenpress: Eigenpress, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("canary-secret\n")
    (tmp_path / "session").write_text("canary-session\n")
    places = ("--prefix", "s3://team-a/x", "--prefix", "s3://team-a/y", "--region", "eu")
    keys = ("--access-key-id", "AKIAAB12", "--from", "secret", "--session-token-from", "session")
    assert eigenpress(*COMMAND, "put-s3", "team-a", "bucket", *places, *keys, "--json") == 0
    assert json.loads(eigenpress.out) == S3
    assert api.bodies == [
        {
            "kind": "s3",
            "prefixes": ["s3://team-a/x", "s3://team-a/y"],
            "access_key_id": "AKIAAB12",
            "secret_access_key": "canary-secret",
            "session_token": "canary-session",
            "endpoint": None,
            "region": "eu",
        }
    ]
    assert eigenpress(*COMMAND, "put-hub", "team-a", "hub", "--from", "none") == 1
    assert "No such file or directory: none" in eigenpress.err


def test_at_a_terminal_the_secret_is_asked_for_and_not_shown(
    api: Api, eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    asked: list[tuple[str, dict[str, Any]]] = []

    def prompt(text: str, **options: Any) -> str:
        asked.append((text, options))
        return "canary-token"

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(typer, "prompt", prompt)
    assert eigenpress(*COMMAND, "put-hub", "team-a", "hub") == 0
    assert asked == [("Token", {"hide_input": True, "err": True})]
    assert api.bodies[0]["token"] == "canary-token"


def test_no_option_takes_a_secret(eigenpress: Eigenpress) -> None:
    for option in ("--token", "--secret-access-key", "--session-token"):
        command = "put-hub" if option == "--token" else "put-s3"
        assert eigenpress(*COMMAND, command, "team-a", "hub", option, "canary") == 2
        assert f"No such option: {option}" in eigenpress.err


def test_list_and_delete(eigenpress: Eigenpress) -> None:
    assert eigenpress(*COMMAND, "list", "team-a") == 0
    head, bucket, hub = eigenpress.out.splitlines()
    assert head.split() == ["name", "kind", "places", "server", "key", "id", "put"]
    assert bucket.split() == ["bucket", "s3", "s3://team-a/", "-", "...AB12", "2026-11-21"]
    assert hub.split() == ["hub", "hub", "all", "https://hub.test", "-", "2026-11-21"]
    assert eigenpress(*COMMAND, "list", "team-a", "--json") == 0
    assert json.loads(eigenpress.out) == [S3, HUB]
    assert eigenpress(*COMMAND, "delete", "team-a", "hub") == 0
    assert eigenpress.out == "hub deleted\n"

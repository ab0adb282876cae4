"""docs/api.md agrees with the code: every route, and every error code with its status."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from fastapi.testclient import TestClient

import service.errors
from api.errors import status_of
from service.domain.job import EventType
from service.errors import EigenpressError

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "api.md").read_text()
ANSWERS = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE, re.MULTILINE))
RETRIED = dict(re.findall(r"^\| `(\w+)` \|.+ \| (yes|no|-) \|$", PAGE, re.MULTILINE))
"""Whether a job that fails with this code is tried again; `-` where no job does."""

INTERNAL = {"attempt_stale", "object_changed"}
"""Seen by no user: one tells an attempt, the other is named as the input that it is about."""


def _errors() -> list[type[EigenpressError]]:
    """Those that are raised; the others are families."""
    found = [kind for _, kind in inspect.getmembers(service.errors, inspect.isclass)]
    ours = [kind for kind in found if issubclass(kind, EigenpressError)]
    return [kind for kind in ours if not kind.__subclasses__()]


def test_every_code_is_explained() -> None:
    codes = {kind.code for kind in _errors()}
    assert codes - INTERNAL <= RETRIED.keys()
    assert ANSWERS.keys() <= RETRIED.keys()
    assert all(PAGE.count(f"\n| `{code}` |") == 1 for code in RETRIED)


def test_statuses_are_right() -> None:
    for kind in _errors():
        if kind.code in ANSWERS:
            assert int(ANSWERS[kind.code]) == status_of(kind), kind


def test_retries_are_right() -> None:
    for kind in _errors():
        if kind.code not in INTERNAL:
            assert (RETRIED[kind.code] == "yes") is kind.retryable, kind


def test_every_event_is_explained() -> None:
    cells = re.findall(r"^\| (`[^|]+`) \|", PAGE, re.MULTILINE)
    explained = {name for cell in cells for name in re.findall(r"`(\w+\.\w+)`", cell)}
    files = [file for folder in ("service", "workers") for file in (ROOT / folder).rglob("*.py")]
    sources = "\n".join(file.read_text() for file in files)
    noted = re.findall(
        r"(?:progress\.note\(\s*|(?:PLACED|PREDICTED|WAITING|SKIPPED|SHORT|CHECKED"
        r"|GAINED_NOTHING) = )\"([\w.]+)\"",
        sources,
    )
    assert len(noted) >= 5
    assert {*EventType, *noted} == explained


def test_every_route_is_shown(client: TestClient) -> None:
    shown = PAGE.replace("{id}", "{job_id}")
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for method in operations:
            assert f"`{method.upper()} {path}`" in shown

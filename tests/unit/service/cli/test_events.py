"""`eigenpress events` and `eigenpress logs`, against an HTTP server in place of the API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from service.client import following
from service.client.client import Client
from tests.fixtures.command_line import JOB_ID, TIME, Api, Eigenpress

EVENTS: list[dict[str, Any]] = [
    {"id": 1, "attempt": None, "at": TIME, "type": "job.queued", "message": "waits", "data": {}},
    {"id": 2, "attempt": 1, "at": TIME, "type": "job.claimed", "message": "\x1b[2J", "data": {}},
]
LOG: dict[str, Any] = {
    "attempt": 2,
    "source": "driver",
    "sources": ["driver"],
    "start": 100,
    "text": "\x1b[36mone\x1b[0m\n\x1b[2Jtwo\n",
    "next_after": 123,
    "complete": True,
    "missing": None,
}


class TestEvents:
    def test_are_lines(
        self, eigenpress: Eigenpress, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pages = iter([EVENTS, []])
        monkeypatch.setattr(Client, "events", lambda *_: next(pages))
        assert api.answers
        assert eigenpress("events", JOB_ID) == 0
        assert eigenpress.out.splitlines() == [
            "2026-11-21T12:00:00Z              job.queued          waits",
            r"2026-11-21T12:00:00Z  attempt 1   job.claimed         \x1b[2J",
        ]

    def test_are_followed_to_the_end(
        self, eigenpress: Eigenpress, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[tuple[Any, ...]] = []

        def follow(_: Client, *given: Any) -> Iterator[Any]:
            asked.append(given)
            return iter(EVENTS)

        monkeypatch.setattr(following, "events", follow)
        assert api.answers
        assert eigenpress("events", JOB_ID, "-f", "--json", "--after", "7") == 0
        assert [json.loads(line) for line in eigenpress.out.splitlines()] == EVENTS
        assert asked == [(JOB_ID, 7)]


class TestLogs:
    def test_are_printed_as_far_as_they_go(self, eigenpress: Eigenpress, api: Api) -> None:
        api.answers[f"GET /v1/jobs/{JOB_ID}/logs"] = (200, LOG)
        assert eigenpress("logs", JOB_ID) == 0
        assert eigenpress.out == "one\n\\x1b[2Jtwo\n"
        assert "100 bytes before this were not kept" in eigenpress.err

    def test_lines_of_json_are_printed_as_text(self, eigenpress: Eigenpress, api: Api) -> None:
        line = {
            "timestamp": "2026-11-28T09:30:00+00:00",
            "level": "INFO",
            "logger": "eigenpress.driver",
            "message": "one\n\x1b[2J",
        }
        page = LOG | {"text": json.dumps(line) + "\n"}
        api.answers[f"GET /v1/jobs/{JOB_ID}/logs"] = (200, page)
        assert eigenpress("logs", JOB_ID) == 0
        text = r"2026-11-28 09:30:00.000+00:00 INFO eigenpress.driver one\n\x1b[2J"
        assert eigenpress.out == f"{text}\n"

    def test_say_what_is_missing(self, eigenpress: Eigenpress, api: Api) -> None:
        lost = LOG | {"text": "", "start": 0, "missing": "Its machine is gone."}
        api.answers[f"GET /v1/jobs/{JOB_ID}/logs"] = (200, lost)
        assert eigenpress("logs", JOB_ID, "--source", "worker-0", "--attempt", "2") == 0
        assert (eigenpress.out, eigenpress.err) == ("", "Its machine is gone.")

    def test_of_a_job_that_waits_are_none(self, eigenpress: Eigenpress, api: Api) -> None:
        none = LOG | {"attempt": 0, "text": "", "start": 0, "complete": False}
        api.answers[f"GET /v1/jobs/{JOB_ID}/logs"] = (200, none)
        assert eigenpress("logs", JOB_ID) == 0
        assert eigenpress.err == "The job has had no attempt."

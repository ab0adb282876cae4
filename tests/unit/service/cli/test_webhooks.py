"""`eigenpress webhooks`, against an HTTP server in place of the API."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fixtures.command_line import Api, Eigenpress

ID = "whk-01kah7m0q8v5n2c4x6z9b3d1fg"
MESSAGE = "msg-01kah7m1t2w3x4y5z6a7b8c9de"
PATH = f"/v1/webhooks/{ID}"
WEBHOOK: dict[str, Any] = {
    "id": ID,
    "url": "https://ci.example.com/[red]",
    "description": None,
    "events": ["job.failed"],
    "created_at": "2026-11-21T12:00:00Z",
    "enabled": True,
    "disabled": None,
    "failing_since": None,
}
DELIVERY: dict[str, Any] = {
    "id": MESSAGE,
    "type": "job.failed",
    "job_id": None,
    "state": "waiting",
    "attempts": 2,
    "error": "The receiver answered with status 500.\x1b[2J",
}


def test_create_prints_the_secret_for_a_script(api: Api, eigenpress: Eigenpress) -> None:
    api.answers["POST /v1/webhooks"] = (201, {**WEBHOOK, "secret": "whsec_abc="})
    command = ("webhooks", "create", "https://ci.example.com", "--event", "job.failed")
    assert eigenpress(*command, "--description", "CI") == 0
    assert eigenpress.out == f"{ID} whsec_abc=\n"
    assert "not shown again" in eigenpress.err
    assert api.bodies == [
        {"url": "https://ci.example.com", "events": ["job.failed"], "description": "CI"}
    ]


def test_list_shows_the_state(api: Api, eigenpress: Eigenpress) -> None:
    others = [
        {**WEBHOOK, "failing_since": "2026-11-21T12:00:00Z"},
        {**WEBHOOK, "enabled": False, "disabled": "gone"},
    ]
    answer = {"webhooks": [WEBHOOK, *others], "next_cursor": "x"}
    api.answers["GET /v1/webhooks"] = (200, answer)
    assert eigenpress("webhooks", "list") == 0
    lines = eigenpress.out.splitlines()
    assert lines[0].split() == ["WEBHOOK", "STATE", "RECEIVER", "EVENTS"]
    assert "works" in lines[1]
    assert "https://ci.example.com/[red]" in lines[1]
    assert "failing" in lines[2]
    assert "disabled (gone)" in lines[3]
    assert "more" in eigenpress.err


def test_deliveries_shows_errors(api: Api, eigenpress: Eigenpress) -> None:
    route = f"GET {PATH}/deliveries"
    api.answers[route] = (200, {"deliveries": [DELIVERY], "next_cursor": None})
    assert eigenpress("webhooks", "deliveries", ID) == 0
    assert r"The receiver answered with status 500.\x1b[2J" in eigenpress.out
    assert MESSAGE in eigenpress.out
    api.answers[route] = (200, {"deliveries": [], "next_cursor": None})
    assert eigenpress("webhooks", "deliveries", ID) == 0
    assert (eigenpress.out, eigenpress.err) == ("", "No deliveries.")


@pytest.mark.parametrize(
    ("command", "route", "answer", "said"),
    [
        (("test", ID), f"POST {PATH}/test", DELIVERY, MESSAGE),
        (("rotate", ID), f"POST {PATH}/rotate", {"secret": "whsec_new"}, "whsec_new"),
        (
            ("redeliver", ID, MESSAGE),
            f"POST {PATH}/deliveries/{MESSAGE}/redeliver",
            DELIVERY,
            f"{MESSAGE} is sent again",
        ),
    ],
)
def test_others(
    api: Api,
    eigenpress: Eigenpress,
    command: tuple[str, ...],
    route: str,
    answer: dict[str, Any],
    said: str,
) -> None:
    api.answers[route] = (200, answer)
    assert eigenpress("webhooks", *command) == 0
    assert eigenpress.out == f"{said}\n"


def test_a_wrong_event_and_an_unknown_webhook_are_explained(
    api: Api, eigenpress: Eigenpress
) -> None:
    assert eigenpress("webhooks", "create", "https://x.example", "--event", "job.ended") == 2
    assert "'job.ended' is not one of 'job.queued'" in eigenpress.err
    problem = {"code": "webhook_not_found", "detail": "There is no webhook whk-1."}
    api.answers["POST /v1/webhooks/whk-1/test"] = (404, problem)
    assert eigenpress("webhooks", "test", "whk-1") == 1
    assert "There is no webhook whk-1. webhook_not_found" in eigenpress.err


def test_the_help_names_every_command(eigenpress: Eigenpress) -> None:
    assert eigenpress("webhooks", "--help") == 0
    for command in ("create", "list", "test", "deliveries", "redeliver", "rotate", "delete"):
        assert f"│ {command} " in eigenpress.out

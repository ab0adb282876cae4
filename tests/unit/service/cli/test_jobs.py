"""The commands about jobs that exist, for people and for programs."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from tests.fixtures.command_line import JOB, JOB_ID, Api, Eigenpress

FAILURE = {"code": "solve_failed", "detail": "No finite [red]solution.", "param": None}
STEP = {
    "step": "calibrate",
    "done": 3,
    "total": 8,
    "unit": "passes",
    "started_at": JOB["created_at"],
    "finished_at": None,
}


def test_jobs_are_asked_for_with_all_filters(api: Api, eigenpress: Eigenpress) -> None:
    filters = (
        "--state queued --state running --method svd --name mine --label team=ml --label a=b=c"
    )
    times = "--created-after 2026-11-21T12:00:00Z --created-before 2026-11-22 --cursor abc"
    assert eigenpress("jobs", *filters.split(), *times.split()) == 0
    (query,) = api.queries
    before = datetime.fromisoformat(query.pop("created_before")[0])
    assert before == datetime(2026, 11, 22).astimezone()
    assert query == {
        "state": ["queued", "running"],
        "method": ["svd"],
        "name": ["mine"],
        "label": ["team=ml", "a=b=c"],
        "created_after": ["2026-11-21T12:00:00+00:00"],
        "limit": ["20"],
        "cursor": ["abc"],
    }


def test_no_such_jobs(api: Api, eigenpress: Eigenpress) -> None:
    api.answers["GET /v1/jobs"] = (200, {"jobs": [], "next_cursor": None})
    assert eigenpress("jobs", "--label", "team=ml") == 0
    assert (eigenpress.out, eigenpress.err) == ("", "No such jobs.")


@pytest.mark.parametrize(
    "filters", [["--label", "team"], ["--created-after", "yesterday"], ["--state", "asleep"]]
)
@pytest.mark.usefixtures("api")
def test_a_wrong_filter_is_explained(eigenpress: Eigenpress, filters: list[str]) -> None:
    assert eigenpress("jobs", *filters) == 2
    assert filters[0] in eigenpress.err


def test_a_next_page_is_said(api: Api, eigenpress: Eigenpress) -> None:
    api.answers["GET /v1/jobs"] = (200, {"jobs": [JOB], "next_cursor": "more"})
    assert eigenpress("jobs") == 0
    assert "--cursor more" in eigenpress.err


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        (["jobs"], {"jobs": [JOB], "next_cursor": None}),
        (["show", JOB_ID], JOB),
        (["label", JOB_ID, "team=ml"], JOB),
        (["priority", JOB_ID, "5"], JOB),
        (["cancel", JOB_ID], {**JOB, "state": "cancelling"}),
        (["retry", JOB_ID], {**JOB, "state": "queued"}),
        (["delete", JOB_ID], {"id": JOB_ID, "deleted": True}),
    ],
)
@pytest.mark.usefixtures("api")
def test_programs_get_one_document(
    eigenpress: Eigenpress, command: list[str], printed: dict[str, Any]
) -> None:
    assert eigenpress(*command, "--json") == 0
    assert json.loads(eigenpress.out) == printed


def test_json_commands_no_terminal(api: Api, eigenpress: Eigenpress) -> None:
    odd = {**JOB, "name": "\x1b[2J\x9b\u202eé"}
    api.answers[f"GET /v1/jobs/{JOB_ID}"] = (200, odd)
    assert eigenpress("show", JOB_ID, "--json") == 0
    assert eigenpress.out.isascii()
    assert eigenpress.out.replace("\n", "").isprintable()
    assert json.loads(eigenpress.out) == odd


@pytest.mark.parametrize(("state", "status"), [("succeeded", 0), ("failed", 1)])
def test_watching_programs_get_a_line_for_each_change(
    api: Api, eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch, state: str, status: int
) -> None:
    looks = iter(["queued", "queued", "running", state])

    def next_look(_seconds: float) -> None:
        api.answers[f"GET /v1/jobs/{JOB_ID}"] = (200, {**JOB, "state": next(looks)})

    next_look(0)
    monkeypatch.setattr("service.client.client.time.sleep", next_look)
    assert eigenpress("watch", JOB_ID, "--json") == status
    lines = [json.loads(line)["state"] for line in eigenpress.out.splitlines()]
    assert lines == ["queued", "running", state]


def test_show_has_what_people_ask(api: Api, eigenpress: Eigenpress) -> None:
    spec = {
        "targets": [{"keep": 0.8}, {"max_perplexity_increase": 0.05}],
        "labels": {"team": "ml", "note": "[b]bold"},
        "priority": 5,
        "method": "svd",
        "model": {"source": "hub", "id": "org/m", "revision": "0" * 40},
        "calibration": {"data": {"source": "s3", "uri": "s3://texts/a"}},
    }
    running = {**JOB, "state": "running", "finished_at": None, "spec": spec, "steps": [STEP]}
    api.answers[f"GET /v1/jobs/{JOB_ID}"] = (200, running)
    assert eigenpress("show", JOB_ID) == 0
    for shown in (
        JOB_ID,
        "first",
        "team=ml, note=[b]bold",
        "0.8, +5% perplexity",
        f"hub:org/m@{'0' * 40}",
        "s3://texts/a",
        "3/8 passes",
    ):
        assert shown in eigenpress.out
    assert eigenpress.err == f"Follow it: eigenpress watch {JOB_ID}"


def test_show_of_a_failed_job_says_why_and_what_next(api: Api, eigenpress: Eigenpress) -> None:
    api.answers[f"GET /v1/jobs/{JOB_ID}"] = (200, {**JOB, "state": "failed", "error": FAILURE})
    assert eigenpress("show", JOB_ID) == 0
    assert "No finite [red]solution." in eigenpress.out
    assert "solve_failed" in eigenpress.out
    assert eigenpress.err == f"Run it again: eigenpress retry {JOB_ID}"


def test_labels_are_set_removed_and_shown(api: Api, eigenpress: Eigenpress) -> None:
    labelled = {**JOB, "spec": {**JOB["spec"], "labels": {"team": "ml", "a": "=[x]"}}}
    api.answers[f"PATCH /v1/jobs/{JOB_ID}"] = (200, labelled)
    assert eigenpress("label", JOB_ID, "team=ml", "other-", "a==[x]", "b=c-") == 0
    assert api.bodies == [{"labels": {"team": "ml", "other": None, "a": "=[x]", "b": "c-"}}]
    assert eigenpress.out == "team=ml\na==[x]\n"
    api.answers[f"GET /v1/jobs/{JOB_ID}"] = (200, labelled)
    assert eigenpress("label", JOB_ID) == 0
    assert eigenpress.out == "team=ml\na==[x]\n"
    assert len(api.bodies) == 1


@pytest.mark.parametrize("change", ["team", "Team=ml", "=ml", "team=" + "x" * 64, "-"])
def test_a_wrong_label_is_explained(api: Api, eigenpress: Eigenpress, change: str) -> None:
    assert eigenpress("label", JOB_ID, "--", change) == 2
    assert "CHANGE" in eigenpress.err
    assert api.bodies == []


@pytest.mark.parametrize("number", [5, -5, 0])
def test_a_priority_may_be_negative(api: Api, eigenpress: Eigenpress, number: int) -> None:
    changed = {**JOB, "state": "queued", "spec": {**JOB["spec"], "priority": number}}
    api.answers[f"PATCH /v1/jobs/{JOB_ID}"] = (200, changed)
    assert eigenpress("priority", JOB_ID, str(number)) == 0
    assert api.bodies == [{"priority": number}]
    assert eigenpress.out == f"{JOB_ID} queued with priority {number}\n"


@pytest.mark.parametrize("number", ["101", "high", "-101", "--nonsense"])
def test_a_wrong_priority_is_explained(api: Api, eigenpress: Eigenpress, number: str) -> None:
    assert eigenpress("priority", JOB_ID, number) == 2
    assert api.bodies == []


class TestVersions:
    def test_another_one_is_remarked_and_no_failure(self, api: Api, eigenpress: Eigenpress) -> None:
        api.version = "99.3.1"
        assert eigenpress("show", JOB_ID, "--json") == 0
        assert json.loads(eigenpress.out) == JOB
        assert eigenpress.err.startswith("Note: the server has version 99.3.1 of Eigenpress, this")

    def test_it_is_remarked_beside_an_error(self, api: Api, eigenpress: Eigenpress) -> None:
        api.version = "99.3.1"
        api.answers[f"GET /v1/jobs/{JOB_ID}"] = (422, {"code": "odd", "detail": "Odd."})
        assert eigenpress("show", JOB_ID) == 1
        assert "99.3.1" in eigenpress.err
        assert "Error: Odd." in eigenpress.err

    def test_a_correction_is_not_remarked(self, api: Api, eigenpress: Eigenpress) -> None:
        major, minor, *_ = api.version.split(".")
        api.version = f"{major}.{minor}.99"
        assert eigenpress("cancel", JOB_ID) == 0
        assert "version" not in eigenpress.err


def test_the_key_of_the_environment_is_sent(
    api: Api, eigenpress: Eigenpress, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert eigenpress("jobs") == 0
    monkeypatch.setenv("EIGENPRESS_KEY", "ek-secret")
    assert eigenpress("jobs") == 0
    assert api.keys == [None, "Bearer ek-secret"]

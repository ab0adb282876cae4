"""The comparison, as HTML."""

from __future__ import annotations

import json
import re
from typing import Any

from fastapi.testclient import TestClient
from markupsafe import escape

from service.domain.states import JobState
from tests.unit.api.pages.conftest import PAYLOADS, Make, report_of


def charts(text: str) -> Any:
    return json.loads(re.findall(r'id="charts">(.*?)</script>', text, re.DOTALL)[0])


def test_without_jobs_there_is_a_choice_or_a_word(client: TestClient, make: Make) -> None:
    assert "There is nothing to compare yet." in client.get("/compare").text
    job_id = make(JobState.SUCCEEDED)
    text = client.get("/compare").text
    assert "Choose the jobs." in text
    assert f'<option value="{job_id}">' in text


def test_the_artifacts_of_several_jobs_are_drawn(client: TestClient, make: Make) -> None:
    first = make(JobState.SUCCEEDED, name="first")
    second = make(JobState.SUCCEEDED, report_of((0.5,)), name="second")
    quality, speed = charts(client.get(f"/compare?job={first}&job={second}").text)
    assert (quality["x"], quality["y"]) == ("Bytes", "Perplexity, held-out")
    assert quality["series"] == [
        {
            "name": "first",
            "points": [
                [1_200_000, 10 / 0.6, "keep-0.6"],
                [1_600_000, 10 / 0.8, "keep-0.8"],
                [2_000_000, 10.0, "dense"],
            ],
        },
        {"name": "second", "points": [[1_000_000, 20.0, "keep-0.5"], [2_000_000, 10.0, "dense"]]},
    ]
    assert speed["series"][1]["points"][0] == [1_000_000, 40.0, "keep-0.5"]


def test_size_quality_and_artifacts_are_chosen(client: TestClient, make: Make) -> None:
    job_id = make(JobState.SUCCEEDED)
    query = f"job={job_id}&size=parameters&quality=ratio&artifact={job_id}/keep-0.6"
    text = client.get(f"/compare?{query}").text
    (quality, _) = charts(text)
    assert quality["series"][0]["points"] == [[600_000, 1 / 0.6, "keep-0.6"]]
    assert text.count(" checked>") == 1
    assert text.count('name="artifact"') == 3


def test_a_job_without_artifacts_says_so(client: TestClient, make: Make) -> None:
    text = client.get(f"/compare?job={make(JobState.RUNNING, name='busy')}").text
    assert "busy is running; only jobs that have succeeded have artifacts." in text
    assert charts(text) == []


def test_a_report_of_another_version_may_lack_fields(client: TestClient, make: Make) -> None:
    for report in ({}, {"targets": [{"name": "x"}], "model": 1}, {"targets": [{"size": None}]}):
        job_id = make(JobState.SUCCEEDED, report or {"format": 9})
        answer = client.get(f"/compare?job={job_id}")
        assert answer.status_code == 200
        assert charts(answer.text) == []


def test_reports_are_only_text(client: TestClient, make: Make) -> None:
    for payload in PAYLOADS:
        report = report_of(text=payload)
        report["targets"][0]["name"] = payload
        answer = client.get(f"/compare?job={make(JobState.SUCCEEDED, report)}")
        assert payload == escape(payload) or payload not in answer.text
        assert str(escape(payload)) in answer.text
        quality = charts(answer.text)[0]
        assert quality["y"] == f"Perplexity, {payload}"
        assert payload in [name for _, _, name in quality["series"][0]["points"]]


def test_unknown_jobs_and_choices_are_refused(client: TestClient) -> None:
    assert client.get("/compare?job=job-" + 26 * "0").status_code == 404
    assert client.get("/compare?job=x").status_code == 422
    assert client.get("/compare?size=weight").status_code == 422

"""The part of a job's page that shows a log."""

from __future__ import annotations

import json
import re
from collections.abc import Generator

import pytest
from fastapi.testclient import TestClient

from api.pages.job import logs as logs_module
from service.cluster.ray_jobs import Active
from service.domain.states import JobState
from service.errors import ClusterUnavailable
from tests.unit.api.conftest import OfflineCluster
from tests.unit.api.pages.conftest import Make

LINES = [f"line {number:03}" for number in range(100)]


@pytest.fixture
def printing(monkeypatch: pytest.MonkeyPatch, cluster: OfflineCluster) -> None:
    def read() -> Generator[bytes, None, None]:
        yield "".join(f"{line}\n" for line in LINES).encode()

    monkeypatch.setattr(cluster, "status", lambda *_: Active())
    monkeypatch.setattr(cluster, "logs", lambda *_: {"driver": read, "worker-0": read})
    monkeypatch.setattr(logs_module, "LOG_BYTES", 90)


def lines(html: str) -> list[str]:
    return re.findall(r"line \d{3}", html)


@pytest.mark.usefixtures("printing")
def test_the_end_comes_first_and_older_lines_one_after_another(
    client: TestClient, second_attempt: str
) -> None:
    html = client.get(f"/jobs/{second_attempt}/logs").text
    seen = lines(html)
    assert seen[-1] == LINES[-1]
    while older := re.search(r'href="([^"]+)"[^>]*>Older lines', html):
        html = client.get(older[1].replace("&amp;", "&")).text
        seen = lines(html) + seen
    assert seen == LINES


@pytest.mark.usefixtures("printing")
def test_newer_lines_follow_and_say_when_there_are_none(
    client: TestClient, second_attempt: str
) -> None:
    html = client.get(f"/jobs/{second_attempt}/logs?after=0").text
    assert lines(html)[0] == LINES[0]
    (newer,) = re.findall(r'href="([^"]+)"[^>]*>Newer lines', html)
    assert lines(client.get(newer.replace("&amp;", "&")).text)[0] == LINES[len(lines(html))]
    assert "There is nothing more." in client.get(f"/jobs/{second_attempt}/logs?after=900").text


@pytest.mark.usefixtures("printing")
def test_lines_of_json_are_shown_as_text(
    client: TestClient,
    second_attempt: str,
    cluster: OfflineCluster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = {
        "timestamp": "2026-11-28T09:30:00+00:00",
        "level": "INFO",
        "logger": "eigenpress.driver",
    }

    def read() -> Generator[bytes, None, None]:
        yield b"".join(
            json.dumps({**line, "message": f"<{number}>"}).encode() + b"\n" for number in range(9)
        )

    monkeypatch.setattr(cluster, "logs", lambda *_: {"driver": read})
    monkeypatch.setattr(logs_module, "LOG_BYTES", 300)
    html = client.get(f"/jobs/{second_attempt}/logs").text
    shown = [f"2026-11-28 09:30:00.000+00:00 INFO eigenpress.driver &lt;{n}&gt;\n" for n in (7, 8)]
    assert "".join(shown) in html
    assert "timestamp" not in html
    assert client.get(f"/v1/jobs/{second_attempt}/logs").json()["text"].startswith('{"timestamp"')


@pytest.mark.usefixtures("printing")
def test_attempts_and_processes_can_be_chosen(client: TestClient, second_attempt: str) -> None:
    html = client.get(f"/jobs/{second_attempt}/logs?source=worker-0").text
    assert "<option selected>2</option>" in html
    assert "<option>1</option>" in html
    assert "<option selected>worker-0</option>" in html
    assert 'aria-label="Log of worker-0, attempt 2"' in html


def test_trouble_is_said_in_the_place_of_the_log(
    client: TestClient, cluster: OfflineCluster, second_attempt: str
) -> None:
    cluster.trouble = ClusterUnavailable("Ray does not answer.")
    answer = client.get(f"/jobs/{second_attempt}/logs")
    assert answer.status_code == 200
    assert "Ray does not answer." in answer.text
    assert "has attempts 1 to 2, not 3" in client.get(f"/jobs/{second_attempt}/logs?attempt=3").text


def test_a_lost_log_says_why(client: TestClient, second_attempt: str) -> None:
    html = client.get(f"/jobs/{second_attempt}/logs?attempt=1").text
    assert "Ray does not know the attempt" in html


def test_a_job_without_attempts_has_no_log(client: TestClient, make: Make) -> None:
    assert "No attempt has begun." in client.get(f"/jobs/{make()}/logs").text
    job_id = make(JobState.CANCELLED)
    assert "hx-get" not in client.get(f"/jobs/{job_id}").text.partition('id="log-title"')[2]


@pytest.mark.parametrize("query", ["source=../../etc", "before=-1", "attempt=0", "after=x"])
def test_what_is_no_part_of_a_log_is_refused(
    client: TestClient, second_attempt: str, query: str
) -> None:
    assert client.get(f"/jobs/{second_attempt}/logs?{query}").status_code == 422

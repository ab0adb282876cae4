"""The list of jobs, as HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import pytest
from fastapi.testclient import TestClient
from markupsafe import escape
from pydantic import SecretStr

from api.app import create_app
from api.pages import jobs as jobs_module
from api.pages.route import without_blanks
from api.services import Services
from service.domain.job import DEFAULT_TENANT
from service.domain.principal import Scope
from service.domain.states import JobState
from service.store.store import Store
from tests.unit.api.pages.conftest import PAYLOADS, Make

ADMIN_KEY = "ep_" + 40 * "a"
HTMX = {"HX-Request": "true"}


@pytest.fixture
def guarded(services: Services) -> Iterator[TestClient]:
    """A client of a server that asks for keys, with the admin's in its cookie."""
    settings = services.settings.model_copy(
        update={"require_keys": True, "admin_key": SecretStr(ADMIN_KEY)}
    )
    app = create_app(settings, lambda _: nullcontext(replace(services, settings=settings)))
    with TestClient(app) as client:
        client.cookies.set("eigenpress_key", ADMIN_KEY)
        yield client


def shown(text: str) -> list[str]:
    return re.findall(r'<li id="(job-\w+)"', text)


def row(text: str, job_id: str) -> str:
    """The HTML of the job's row."""
    return text.partition(f'<li id="{job_id}"')[2].partition('<li id="job-')[0]


def test_each_state_is_shown(client: TestClient, make: Make) -> None:
    ids = {state: make(state, labels={"team": "ml"}) for state in reversed(JobState)}
    text = client.get("/").text
    assert shown(text) == [ids[state] for state in JobState]
    for state, job_id in ids.items():
        check_row(row(text, job_id), state, job_id)


def check_row(text: str, state: JobState, job_id: str) -> None:
    assert f'href="/jobs/{job_id}"' in text
    assert f'<span class="state {state}">{state.capitalize()}</span>' in text
    assert "team=ml" in text
    assert "keep-0.8, keep-0.6" in text
    assert ("calibrate: 48 of 128 sequences" in text) is (state is JobState.RUNNING)
    assert ("/cancel" in text) is (state in (JobState.QUEUED, JobState.RUNNING))
    assert ("/retry" in text) is (state is JobState.FAILED)
    assert ('name="job" value=' in text) is (state is JobState.SUCCEEDED)
    assert ("model invalid" in text) is (state is JobState.FAILED)
    assert ("<progress" in text) is (state is JobState.RUNNING)


def test_an_empty_list_says_how_to_begin(client: TestClient) -> None:
    assert "There are no jobs yet." in client.get("/").text
    filtered = client.get("/?state=running").text
    assert "No job matches." in filtered
    assert 'value="running" checked' in filtered


def test_filters_are_those_of_the_api_and_empty_ones_do_not_count(
    client: TestClient, make: Make
) -> None:
    wanted = make(name="a", labels={"team": "ml"})
    make(name="b", method="svd")
    query = "?state=queued&method=impact-kron&name=a&label=team%3Dml&from=2020-01-01&to="
    assert shown(client.get(f"/{query}").text) == [wanted]
    assert len(shown(client.get("/?state=&method=&name=&label=&from=&to=").text)) == 2
    assert shown(client.get("/?to=2020-01-01").text) == []
    assert len(shown(client.get("/?to=9999-12-31").text)) == 2
    assert without_blanks(b"a=&b=1&b=") == b"b=1"


def test_a_filter_that_is_none_is_refused_with_a_page(client: TestClient) -> None:
    answer = client.get("/?label=%3Cb%3E")
    assert answer.status_code == 422
    assert "&lt;b&gt;" in answer.text
    assert "<b>" not in answer.text


def test_pages_follow_one_another_and_keep_the_filters(
    client: TestClient, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "JOBS_PER_PAGE", 2)
    ids = [make() for _ in range(3)]
    first = client.get("/?state=queued").text
    assert shown(first) == [ids[2], ids[1]]
    (older,) = re.findall(r'href="(/\?[^"]+)" rel="next"', first)
    second = client.get(older.replace("&amp;", "&")).text
    assert shown(second) == [ids[0]]
    assert 'href="/?state=queued">Newest jobs' in second
    assert "newest=" in first
    assert "newest=" not in second  # no new jobs appear among old ones


def test_a_reader_sees_no_buttons(guarded: TestClient, store: Store, make: Make) -> None:
    make(JobState.RUNNING)
    make(JobState.FAILED)
    _, text = store.keys.create(DEFAULT_TENANT, Scope.READER)
    full = guarded.get("/").text
    assert "/cancel" in full
    assert "/retry" in full
    assert 'href="/new"' in full
    guarded.cookies.set("eigenpress_key", text)
    bare = guarded.get("/").text
    assert not re.search(r'/cancel|/retry|href="/new"', bare)
    assert guarded.get("/new").status_code == 403


def test_a_click_changes_the_job_and_shows_its_list_or_its_row(
    client: TestClient, store: Store, make: Make
) -> None:
    failed, queued = make(JobState.FAILED), make()
    answer = client.post(
        f"/rows/{queued}/cancel", data={"list": "state=queued"}, follow_redirects=False
    )
    assert (answer.status_code, answer.headers["Location"]) == (303, "/?state=queued")
    assert store.records.get(queued).state is JobState.CANCELLED
    again = client.post(f"/rows/{failed}/retry", headers=HTMX)
    assert again.status_code == 200
    assert shown(again.text) == [failed]
    assert "autofocus" in again.text
    assert store.records.get(failed).state is JobState.QUEUED


def test_a_click_that_comes_too_late_says_so(client: TestClient, make: Make) -> None:
    job_id = make(JobState.SUCCEEDED)
    page = client.post(f"/rows/{job_id}/cancel")
    part = client.post(f"/rows/{job_id}/cancel", headers=HTMX)
    for answer in (page, part):
        assert answer.status_code == 409
        assert "has already succeeded" in answer.text
    assert part.headers["HX-Retarget"] == "#notice"
    assert "<html" not in part.text


def test_clicks_are_in_the_audit_log_as_those_of_the_api(
    guarded: TestClient, store: Store, make: Make
) -> None:
    job_id = make()
    guarded.post(f"/rows/{job_id}/cancel", follow_redirects=False)
    (record,) = store.audit.list_records(limit=9)
    assert (record.action, record.subject) == ("cancel", f"/v1/jobs/{job_id}")


def test_labels_and_paths_are_only_text(client: TestClient, make: Make) -> None:
    for payload in PAYLOADS:
        make(labels={"team": payload}, model={"source": "local", "path": payload})
    text = client.get("/").text
    for payload in PAYLOADS:
        assert f"team={escape(payload)}" in text
        assert payload == escape(payload) or payload not in text


@pytest.mark.parametrize(
    "query", ["shown=x", "shown=job-" + 26 * "0" + ".dead.1.2", "&".join(201 * ["shown=x"])]
)
def test_a_stream_of_what_is_no_list_is_refused(client: TestClient, query: str) -> None:
    assert client.get(f"/rows?{query}").status_code == 422


def test_a_proxy_may_mount_the_pages_below_a_path(services: Services, make: Make) -> None:
    job_id = make()
    app = create_app(services.settings, lambda _: nullcontext(services))
    with TestClient(app, root_path="/press") as client:
        text = client.get("/press/").text
        assert f'href="/press/jobs/{job_id}"' in text
        assert 'sse-connect="/press/rows?' in text
        assert not re.search(r'(href|action|src)="/(?!press/)', text)
        answer = client.post(f"/press/rows/{job_id}/cancel", follow_redirects=False)
        assert answer.headers["Location"] == "/press/"

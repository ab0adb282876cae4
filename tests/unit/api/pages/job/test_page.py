"""The page of a job and its parts, as HTML."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import update

from api.app import create_app
from api.pages.job import page as page_module
from api.pages.job import parts as parts_module
from api.pages.job.parts import LIVE_TYPES
from api.pages.job.timeline import timeline
from api.pages.rendering import templates
from api.pages.rows import progress_of
from api.schemas.jobs import Job, StepToCome, TimeLeft
from api.services import Services
from service.cli.job_file import read_job
from service.domain.job import DEFAULT_TENANT, FileEntry
from service.domain.principal import Scope
from service.domain.spec.job import JobSpec
from service.domain.states import JobState, Step
from service.domain.tenant import Limits, Places
from service.errors import CalibrationTooShort, SolveFailed
from service.logs.attempt_logs import LogPage
from service.store import tables
from service.store.store import Store
from tests.fixtures.jobs import at_once, rewrite_spec
from tests.unit.api.pages.conftest import PAYLOADS, Make
from tests.unit.api.pages.job.conftest import LOST, Succeeded
from tests.unit.service.report.test_view import Elements, a_report

ADMIN_KEY = "ep_" + 40 * "a"
HTMX = {"HX-Request": "true"}
PARTS = ("head", "results", "artifacts", "events", "events?after=0", "logs")
MOST_SECONDS = 2.0
MOST_BYTES = 2_000_000
DOCS = Path(__file__).parents[5] / "docs" / "api.md"


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


def failed(store: Store, job_body: dict[str, Any], error: Any) -> str:
    job_id = store.users(DEFAULT_TENANT).create(JobSpec.model_validate(job_body)).id
    store.claims.claim()
    store.attempts.fail(job_id, 1, error.failure(), at_once(1))
    return job_id


def text_of(html: str) -> str:
    """Without tags, and with one space between words."""
    return " ".join(Elements(html).text.split())


@pytest.mark.parametrize("state", JobState)
def test_each_state_has_its_words_and_its_buttons(
    client: TestClient, make: Make, state: JobState
) -> None:
    job_id = make(state, labels={"team": "ml"}, name="mine", priority=3)
    html = client.get(f"/jobs/{job_id}").text
    text = text_of(html)
    assert f'<span class="state {state}">{state.capitalize()}</span>' in html
    assert "<h1>mine</h1>" in html
    assert job_id in text
    assert "team=ml" in text
    assert "priority 3" in text
    assert "targets keep-0.8, keep-0.6" in text
    assert (f"/jobs/{job_id}/cancel" in html) is (state in (JobState.QUEUED, JobState.RUNNING))
    assert (f"/jobs/{job_id}/retry" in html) is (state is JobState.FAILED)
    ended = state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
    assert (f"/jobs/{job_id}/delete" in html) is ended
    assert ("sse-connect" in html) is not ended
    assert ("<progress" in html) is (state in (JobState.RUNNING, JobState.CANCELLING))
    assert (f"/v1/jobs/{job_id}/report.html" in html) is (state is JobState.SUCCEEDED)
    assert f'href="/new?from={job_id}"' in html
    assert f'href="/v1/jobs/{job_id}"' in html


@pytest.mark.parametrize("state", JobState)
def test_every_part_answers_in_every_state_to_htmx_and_as_a_page(
    client: TestClient, make: Make, state: JobState
) -> None:
    job_id = make(state)
    for part in PARTS:
        answer = client.get(f"/jobs/{job_id}/{part}", headers=HTMX)
        assert answer.status_code == 200
        assert "<html" not in answer.text
    for part in ("artifacts", "events", "logs"):
        assert f'href="/jobs/{job_id}"' in client.get(f"/jobs/{job_id}/{part}").text


def test_a_recovery_is_among_what_was_asked_for(
    client: TestClient, store: Store, job_body: dict[str, Any]
) -> None:
    users = store.users(DEFAULT_TENANT)
    several = {"sequences": 1200, "epochs": 2}
    cases = ({"sequences": 80}, "training on 80 sequences"), (several, "1,200 sequences, 2 times")
    for recovery, words in cases:
        body = job_body | {"recovery": recovery}
        made = users.create(JobSpec.model_validate(body))
        assert words in text_of(client.get(f"/jobs/{made.id}").text)


def test_a_failure_says_what_to_do(
    client: TestClient, store: Store, job_body: dict[str, Any]
) -> None:
    short = CalibrationTooShort("There are 12 tokens.", param="calibration.sequences")
    text = text_of(client.get(f"/jobs/{failed(store, job_body, short)}").text)
    assert "Why it failed There are 12 tokens." in text
    assert "What to do: Add text, or lower calibration.sequences or" in text
    assert "Code calibration_too_short, field calibration.sequences" in text


def test_a_failure_without_a_common_remedy_sends_to_the_log(
    client: TestClient, store: Store, job_body: dict[str, Any]
) -> None:
    text = text_of(client.get(f"/jobs/{failed(store, job_body, SolveFailed())}").text)
    assert "What to do: read the log below; docs/operations.md says" in text


def test_a_second_attempt_runs_after_a_failure(client: TestClient, second_attempt: str) -> None:
    html = client.get(f"/jobs/{second_attempt}").text
    text = text_of(html)
    assert "Running Attempt 2: calibrate." in text
    assert f"Why attempt 1 failed {LOST.detail}" in text
    assert "Attempt 2 running" in text
    assert "Continues after 48 sequences." in text
    assert "64 of 128 sequences" in text
    assert "Then: solve, allocate, assemble, prove, evaluate, publish." in text
    assert re.search(r"Attempt 1 failed after \d+ s: worker lost resolve", text)
    assert "calibrate 128 sequences not finished" in text
    assert '<progress value="64" max="128" aria-label="Progress of calibrate">' in html


def test_a_job_that_waits_for_its_next_attempt_says_so(
    client: TestClient, store: Store, job_body: dict[str, Any]
) -> None:
    job_id = store.users(DEFAULT_TENANT).create(JobSpec.model_validate(job_body)).id
    store.claims.claim()
    policy = replace(at_once(3), first_pause_seconds=60.0)
    store.attempts.fail(job_id, 1, LOST.failure(), policy)
    text = text_of(client.get(f"/jobs/{job_id}").text)
    assert "Attempt 1 failed; the next one is to come." in text
    assert "The next attempt may begin 1 min 0 s later." in text
    assert f"Why attempt 1 failed {LOST.detail}" in text


def test_the_time_left_is_said_where_it_is_known(store: Store, second_attempt: str) -> None:
    def steps(left: TimeLeft) -> str:
        job = Job.of(store.records.get(second_attempt), root_path="", dashboard_url="")
        job = job.model_copy(update={"time_left": left})
        told = timeline(job, store.records.events(second_attempt), datetime.now(UTC))
        return text_of(templates().get_template("job_steps.html").render(job=job, attempts=told))

    to_come = [StepToCome(step=Step.SOLVE, seconds=65.0)]
    known = steps(TimeLeft(seconds=125.0, to_come=to_come))
    assert known.startswith("About 2 min 5 s left.")
    assert "Then: solve (1 min 5 s), allocate, assemble, prove, evaluate, publish." in known
    unknown = steps(TimeLeft(seconds=None, to_come=[], reason="Too early to say."))
    assert unknown.startswith("Too early to say.")


def test_warnings_are_shown(client: TestClient, store: Store, second_attempt: str) -> None:
    store.attempts.record(second_attempt, 2, "texts.short", "It is short.", is_warning=True)
    head = client.get(f"/jobs/{second_attempt}/head", headers=HTMX).text
    assert "Warning It is short. texts.short" in text_of(head)
    assert 'id="said" hx-swap-oob="innerHTML">Running. Attempt 2: calibrate.</p>' in head


def test_an_attempt_without_steps_says_what_it_waits_for(
    client: TestClient, store: Store, job_body: dict[str, Any]
) -> None:
    job_id = store.users(DEFAULT_TENANT).create(JobSpec.model_validate(job_body)).id
    store.claims.claim()
    assert "Attempt 1 begins." in client.get(f"/jobs/{job_id}").text
    store.attempts.record(job_id, 1, "workers.waiting", "Others use the GPUs.")
    assert "Attempt 1: Others use the GPUs." in client.get(f"/jobs/{job_id}/head").text


def test_events_come_in_pages_the_latest_first(
    client: TestClient, store: Store, second_attempt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page_module, "EVENTS_PER_PAGE", 4)
    events = store.records.events(second_attempt)[::-1]
    seen: list[str] = []
    html = client.get(f"/jobs/{second_attempt}").text
    while True:
        seen += re.findall(r"<code>(\w+\.\w+)</code>\s+<span class=\"message\">", html)
        older = re.search(r'href="(/jobs/[^"]+/events\?before=\d+)"', html)
        if older is None:
            break
        html = client.get(older[1], headers=HTMX).text
    assert seen == [each.type for each in events]


def test_new_events_are_those_after_the_last_one_that_was_shown(
    client: TestClient, store: Store, second_attempt: str
) -> None:
    last = store.records.events(second_attempt)[-1].id
    address = f"/jobs/{second_attempt}/events?after={last}"
    assert "<li>" not in client.get(address).text
    store.attempts.record(second_attempt, 2, "texts.used", "Two texts.", {"texts": ["a<b"]})
    html = client.get(address).text
    (event,) = store.records.events(second_attempt, after=last)
    assert html.count("<li>") == 1
    assert f'name="after" value="{event.id}" hx-swap-oob="true"' in html
    assert "a&lt;b" in html


def test_the_page_waits_for_every_type_of_event() -> None:
    page = DOCS.read_text()
    table = page[page.index("| `job.queued` |") :].partition("\n\n")[0]
    cells = "\n".join(re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE))
    explained = set(re.findall(r"`(\w+\.\w+)`", cells))
    assert explained
    assert set(LIVE_TYPES) == explained


def test_a_report_s_pictures_are_drawn_here(client: TestClient, succeeded: Succeeded) -> None:
    html = client.get(f"/jobs/{succeeded()}").text
    for asset in ("uplot.min", "pictures"):
        assert re.search(rf'href="/assets/(vendor/)?{asset}\.\w+\.css"', html)
        assert re.search(rf'src="/assets/(vendor/)?{asset}\.\w+\.js"', html)
    assert "60% of the size" in html
    assert "data-chart" in html


def test_a_job_of_a_newer_version_is_shown_as_far_as_it_is_known(
    client: TestClient, store: Store, make: Make
) -> None:
    job_id = make(name="newer", labels={"a": "b"})
    rewrite_spec(store, store.records.get(job_id), method="magic", more=[1, 2])
    text = text_of(client.get(f"/jobs/{job_id}").text)
    assert "method magic" in text
    assert '"more": [' in text


@pytest.mark.parametrize("layers", ["blocks", "experts"])
def test_thousands_of_layers_are_shown_at_once(
    client: TestClient, succeeded: Succeeded, layers: str
) -> None:
    """It is the process's time that counts: what else the machine does only delays it."""
    report = a_report(5000, name="keep-0.8")
    if layers == "experts":
        for number, each in enumerate(report["targets"][0]["layers"]):
            each["name"] = f"model.layers.{number // 128}.mlp.experts.{number % 128}.w1"
    job_id = succeeded(report)
    client.get("/")  # compiles templates
    start = time.process_time()
    answer = client.get(f"/jobs/{job_id}")
    assert time.process_time() - start < MOST_SECONDS
    assert len(answer.content) < MOST_BYTES


def test_a_history_that_is_too_long_is_shown_in_part(
    client: TestClient, second_attempt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "MAX_TOLD_EVENTS", 5)
    assert "Attempt 1 failed" not in text_of(client.get(f"/jobs/{second_attempt}").text)
    monkeypatch.setattr(parts_module, "MAX_TOLD_EVENTS", 1)
    assert "too many to show here" in client.get(f"/jobs/{second_attempt}").text


def rename(store: Store, job_id: str, payload: str) -> None:
    """Give it a name that a submission could not have."""
    with store._database.writing() as connection:
        mine = tables.jobs.c.id == job_id
        connection.execute(update(tables.jobs).where(mine).values(name=payload))


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_that_a_stranger_wrote_becomes_markup(
    client: TestClient,
    store: Store,
    succeeded: Succeeded,
    job_body: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    services: Services,
    payload: str,
) -> None:
    def pages(text: str) -> list[Elements]:
        log = LogPage(1, "driver", ("driver",), 0, f"{text}\n", len(text), complete=True)
        monkeypatch.setattr(services.logs, "last", lambda *_: log)
        files = (FileEntry(f"{text.replace('/', '|')}.json", 7, "ab" * 32),)
        made = succeeded(
            a_report(text=text, name="keep-0.8"),
            files,
            labels={"team": text},
            model={"source": "local", "path": text},
        )
        error = CalibrationTooShort(text, param=text)
        lost = failed(store, job_body | {"labels": {"team": text}}, error)
        running = store.users(DEFAULT_TENANT).create(JobSpec.model_validate(job_body)).id
        store.claims.claim()
        store.attempts.record(running, 1, "workers.waiting", text, {text: text}, is_warning=True)
        store.attempts.progress(running, 1, Step.CALIBRATE, 1, 2, text)
        ids = (made, lost, running)
        for job_id in ids:
            rename(store, job_id, text)
        found = [client.get(f"/jobs/{job_id}").text for job_id in ids]
        found += [client.get(f"/jobs/{job_id}/{part}").text for job_id in ids for part in PARTS]
        store.users(DEFAULT_TENANT).cancel(running)
        store.claims.end_cancelled(running, 1)
        return [Elements(re.sub(r"job-\w{26}", "job", html)) for html in found]

    for plain, crafted in zip(pages("plain"), pages(payload), strict=True):
        assert crafted.tags == plain.tags
        assert sorted(crafted.attributes) == sorted(plain.attributes)


def test_a_reader_looks_and_changes_nothing(guarded: TestClient, store: Store, make: Make) -> None:
    ids = [make(JobState.RUNNING), make(JobState.FAILED)]
    _, text = store.keys.create(DEFAULT_TENANT, Scope.READER)
    full = [guarded.get(f"/jobs/{job_id}").text for job_id in ids]
    guarded.cookies.set("eigenpress_key", text)
    bare = [guarded.get(f"/jobs/{job_id}").text for job_id in ids]
    buttons = re.compile(r"/(cancel|retry|delete)\"|/new\?from")
    assert all(buttons.search(each) for each in full)
    assert not any(buttons.search(each) for each in bare)
    for action in ("cancel", "retry", "delete"):
        assert guarded.post(f"/jobs/{ids[0]}/{action}").status_code == 403


def test_another_tenant_s_job_does_not_exist(guarded: TestClient, store: Store, make: Make) -> None:
    job_id = make(JobState.RUNNING)
    store.tenants.create("other", Limits(), Places())
    _, text = store.keys.create("other", Scope.ADMIN)
    guarded.cookies.set("eigenpress_key", text)
    for part in (
        "",
        *(f"/{each}" for each in PARTS),
        "/live?shown=running.1.1",
        "/logs/live?attempt=1&source=driver",
        "/request.yaml",
    ):
        answer = guarded.get(f"/jobs/{job_id}{part}")
        assert answer.status_code == 404
        assert "There is no job" in answer.text


def test_its_request_is_a_file_that_submits_the_same_job(
    client: TestClient, make: Make, store: Store, tmp_path: Path
) -> None:
    job_id = make(
        JobState.FAILED,
        name="no",
        labels={"since": "2026-11-28", "build": "1e3", "empty": "", "answer": "~"},
        targets=[{"keep": 0.8}, {"bytes_fraction": 0.25}, {"max_perplexity_increase": 1e-05}],
        evaluation={"prompts": ["def f():\n\treturn 'ä\u2028'\n", "- a: b # c"]},
        mixed_precision="no",
    )
    href = re.search(r'href="([^"]+)" download>Request as YAML', client.get(f"/jobs/{job_id}").text)
    assert href is not None
    answer = client.get(href[1])
    assert answer.headers["Content-Type"].startswith("application/yaml")
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{job_id}.yaml"'
    file = tmp_path / "job.yaml"
    file.write_bytes(answer.content)
    made = client.post("/v1/jobs", json=read_job(file)).json()
    assert store.records.get(made["id"]).spec == store.records.get(job_id).spec
    assert made["spec"]["labels"]["build"] == "1e3"


def test_a_request_of_another_version_is_a_file_too(
    client: TestClient, make: Make, store: Store, tmp_path: Path
) -> None:
    job_id = make(JobState.FAILED)
    rewrite_spec(store, store.records.get(job_id), newer=[1, None, "1_0", {"to": "no"}])
    file = tmp_path / "job.yaml"
    file.write_bytes(client.get(f"/jobs/{job_id}/request.yaml").content)
    assert read_job(file) == client.get(f"/v1/jobs/{job_id}").json()["spec"]


@pytest.mark.parametrize("shown", ["", "dead.1.2", "running.1", "running.-1.2", "running.1.2.3"])
def test_a_stream_of_what_is_no_progress_is_refused(
    client: TestClient, make: Make, shown: str
) -> None:
    assert client.get(f"/jobs/{make()}/live?shown={shown}").status_code == 422


def test_a_proxy_may_mount_the_page_below_a_path(
    services: Services, succeeded: Succeeded, second_attempt: str
) -> None:
    ids = (succeeded(), second_attempt)
    app = create_app(services.settings, lambda _: nullcontext(services))
    with TestClient(app, root_path="/press") as client:
        for job_id in ids:
            for part in ("", *(f"/{each}" for each in PARTS)):
                html = client.get(f"/press/jobs/{job_id}{part}").text
                assert not re.search(r'(href|action|src|hx-get|sse-connect)="/(?!press/)', html)
        answer = client.post(f"/press/jobs/{second_attempt}/cancel", follow_redirects=False)
        assert answer.headers["Location"] == f"/press/jobs/{second_attempt}"


def test_the_progress_of_a_page_is_that_of_the_database(
    client: TestClient, store: Store, second_attempt: str
) -> None:
    html = client.get(f"/jobs/{second_attempt}").text
    stand = store.news.standing([second_attempt], [DEFAULT_TENANT]).progress[second_attempt]
    assert f"/live?shown={'.'.join(map(str, stand))}" in html
    assert progress_of(Job.model_validate(client.get(f"/v1/jobs/{second_attempt}").json())) == stand

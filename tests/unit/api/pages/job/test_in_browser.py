"""The page of a job in a real browser."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from api import board as board_module
from service.cluster.ray_jobs import Active
from service.domain.job import DEFAULT_TENANT, FileEntry
from service.domain.spec.job import JobSpec
from service.domain.states import JobState, Step
from service.errors import SolveFailed
from service.store.store import Store
from tests.fixtures.browser import NewPage, check_looks, serious_faults
from tests.fixtures.jobs import at_once
from tests.unit.api.conftest import OfflineStorage
from tests.unit.api.pages.conftest import PAYLOADS
from tests.unit.api.pages.job.conftest import Succeeded, publish
from tests.unit.service.report.test_view import a_report

STILL = {"reduced_motion": "reduce"}
"""Colours change at once."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "LOOK_SECONDS", 0.05)


@pytest.fixture
def printing(monkeypatch: pytest.MonkeyPatch, cluster: object) -> None:
    def read() -> Generator[bytes, None, None]:
        yield b"first line\n" + PAYLOADS[0].encode() + b"\n"

    monkeypatch.setattr(cluster, "status", lambda *_: Active())
    monkeypatch.setattr(cluster, "logs", lambda *_: {"driver": read, "worker-0": read})


def open_all(page: Page) -> None:
    for summary in page.locator("summary").all():
        if summary.is_visible() and not summary.evaluate("each => each.parentElement.open"):
            summary.click()


@pytest.mark.usefixtures("printing")
def test_it_fits_and_can_be_used(
    live: httpx.Client, new_page: NewPage, succeeded: Succeeded, second_attempt: str
) -> None:
    page = new_page(str(live.base_url), **STILL)
    page.goto(f"/jobs/{second_attempt}")
    open_all(page)
    expect(page.locator("pre.log")).to_contain_text("first line")
    check_looks(page)
    job_id = succeeded(labels={"words": 60 * "w"})
    page.goto(f"/jobs/{job_id}")
    expect(page.locator("#artifacts")).to_contain_text("manifest.json")
    open_all(page)
    check_looks(page)


def test_it_follows_the_job_to_its_end_without_polling(
    live: httpx.Client,
    new_page: NewPage,
    store: Store,
    storage: OfflineStorage,
    job_body: dict[str, Any],
) -> None:
    attempts = store.attempts
    job_id = store.users(DEFAULT_TENANT).create(JobSpec.model_validate(job_body)).id
    page = new_page(str(live.base_url))
    asked: list[str] = []
    with page.expect_response("**/live?*"), page.expect_response("**/events?after=*"):
        page.goto(f"/jobs/{job_id}")
    page.evaluate("window.stayed = true")
    page.on("request", lambda request: asked.append(request.url.rpartition("/")[2]))
    expect(page.locator("#head")).to_contain_text("Waits for a dispatcher.")
    store.claims.claim()
    expect(page.locator("#head")).to_contain_text("Running")
    expect(page.get_by_role("status")).to_have_text("Running. Attempt 1 begins.")
    attempts.progress(job_id, 1, Step.CALIBRATE, 3, 9, "sequences")
    expect(page.locator("#steps")).to_contain_text("3 of 9 sequences")
    expect(page.get_by_label("New events")).to_contain_text("calibrate started")
    expect(page.locator("#head")).to_contain_text("Attempt 1: calibrate.")
    page.get_by_text("Cancel …").click()
    before = list(asked)
    attempts.progress(job_id, 1, Step.CALIBRATE, 6, 9, "sequences")
    expect(page.locator("#steps")).to_contain_text("6 of 9 sequences")
    assert asked == before  # it came with the stream
    attempts.record(job_id, 1, "texts.short", "held-out is short.", {"found": 3}, is_warning=True)
    expect(page.locator("#head")).to_contain_text("held-out is short.")
    expect(page.get_by_text("Cancel the job")).to_be_visible()  # it is still open
    attempts.progress(job_id, 1, Step.CALIBRATE, 9, 9, "sequences")
    publish(store, storage, job_id)
    attempts.succeed(job_id, 1, a_report(name="keep-0.8"))
    expect(page.locator("#results-part")).to_contain_text("60% of the size")
    expect(page.locator("figure[data-chart] canvas").first).to_be_visible()
    expect(page.locator("#artifacts")).to_contain_text("manifest.json")
    expect(page.locator("#head")).to_contain_text("Succeeded")
    expect(page.locator("#steps")).to_contain_text("succeeded")
    types = page.locator("ol.events > li > code").all_text_contents()
    assert types == [each.type for each in reversed(store.records.events(job_id))]
    assert page.evaluate("window.stayed") is True
    assert serious_faults(page) == []


def test_nothing_that_a_stranger_wrote_becomes_markup(
    live: httpx.Client,
    new_page: NewPage,
    store: Store,
    succeeded: Succeeded,
    second_attempt: str,
    printing: None,  # noqa: ARG001
) -> None:
    page = new_page(str(live.base_url))
    page.goto(f"/jobs/{second_attempt}")
    for payload in PAYLOADS:
        store.attempts.record(
            second_attempt, 2, "texts.short", payload, {payload: payload}, is_warning=True
        )
    expect(page.get_by_label("New events")).to_contain_text(PAYLOADS[0])
    expect(page.locator("#head")).to_contain_text(PAYLOADS[-1])
    open_all(page)
    expect(page.locator("pre.log")).to_contain_text(PAYLOADS[0])
    check_unharmed(page)
    files = tuple(FileEntry(each.replace("/", "|"), 1, "ab" * 32) for each in sorted(PAYLOADS))
    report = a_report(text=PAYLOADS[1], name="keep-0.8")
    job_id = succeeded(report, files, labels={"team": PAYLOADS[2]})
    page.goto(f"/jobs/{job_id}")
    expect(page.locator("#artifacts")).to_contain_text("manifest.json")
    open_all(page)
    check_unharmed(page)


def check_unharmed(page: Page) -> None:
    assert "stolen" not in page.title()
    assert page.locator("main img, [onload], [onfocus], [onerror], [hx-get='/x']").count() == 0


def test_it_is_used_by_keyboard_alone(
    live: httpx.Client, new_page: NewPage, store: Store, succeeded: Succeeded
) -> None:
    job_id = succeeded()
    page = new_page(str(live.base_url))
    page.goto(f"/jobs/{job_id}")
    expect(page.locator("#artifacts")).to_contain_text("manifest.json")
    reached: set[str] = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.textContent.trim()"))
    assert {"Files", "Serve it with vLLM", "Job as JSON", "Copy", "Results"} <= reached
    assert "As JSON, with the defaults filled in" in reached  # the last one
    page.locator("summary", has_text="Delete").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_url(str(live.base_url))
    assert store.users(DEFAULT_TENANT).list_jobs(limit=9) == []


@pytest.mark.usefixtures("printing")
def test_it_is_read_without_scripts(
    live: httpx.Client, new_page: NewPage, second_attempt: str, store: Store
) -> None:
    page = new_page(str(live.base_url), java_script_enabled=False)
    page.goto(f"/jobs/{second_attempt}")
    expect(page.locator("#steps")).to_contain_text("64 of 128 sequences")
    page.get_by_text("What the attempt's processes printed").click()
    page.get_by_role("link", name="Read the log").click()
    expect(page.locator("pre.log")).to_contain_text("first line")
    page.get_by_label("Process").select_option("worker-0")
    page.get_by_role("button", name="Show its end").click()
    page.wait_for_url("**source=worker-0")
    page.get_by_role("link", name="Back to the job").click()
    page.get_by_text("Cancel …").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator("#head")).to_contain_text("Its attempt is being stopped.")
    assert store.records.get(second_attempt).state is JobState.CANCELLING


def test_a_job_that_fails_is_retried_and_followed_again(
    live: httpx.Client, new_page: NewPage, store: Store, second_attempt: str
) -> None:
    page = new_page(str(live.base_url))
    with page.expect_response("**/live?*"), page.expect_response("**/events?after=*"):
        page.goto(f"/jobs/{second_attempt}")
    store.attempts.fail(second_attempt, 2, SolveFailed("No solution.").failure(), at_once(1))
    expect(page.locator("#head")).to_contain_text("Why it failed")
    expect(page.locator("#steps")).to_contain_text("failed")
    assert page.locator("#results-part").inner_text() == ""
    page.get_by_role("button", name="Retry").click()
    expect(page.locator("#head")).to_contain_text("Waits for a dispatcher.")
    store.claims.claim()
    expect(page.locator("#steps")).to_contain_text("Attempt 3")

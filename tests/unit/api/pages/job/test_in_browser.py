"""The page of a job in a real browser."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from api import board as board_module
from service.cluster.ray_jobs import Active
from service.domain.job import DEFAULT_TENANT
from service.domain.spec import JobSpec
from service.domain.states import Step
from service.store.store import Store
from tests.fixtures.browser import NewPage, serious_faults
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


def check_looks(page: Page) -> None:
    """The page fits on a phone and on a screen, and can be used, in both schemes."""
    for width in (390, 1400):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert serious_faults(page) == []


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

"""A log that is followed on a job's page, in a real browser."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from api import log_feed as log_feed_module
from service.cluster.ray_jobs import Active, Ended
from service.domain.job import DEFAULT_TENANT
from service.domain.spec.job import JobSpec
from service.errors import SolveFailed, WorkerLost
from service.store.store import Store
from tests.fixtures.browser import NewPage, serious_faults
from tests.fixtures.jobs import at_once
from tests.fixtures.waiting import wait_until
from tests.unit.api.conftest import OfflineCluster
from tests.unit.api.pages.conftest import PAYLOADS

AT_END = "log => log.scrollHeight - log.scrollTop - log.clientHeight < 8"
SAY_WHERE_IT_RESTS = """log => log.addEventListener(
    "scrollend", () => { log.dataset.restsAt = log.scrollTop; }
)"""
CRAFTED = [*PAYLOADS, "\x1b[31mred\x1b[0m", "event: end", "data: {}", "\u202etxt.exe"]


class Printing:
    """What the driver has printed; `status` is that of its process."""

    def __init__(self) -> None:
        self.data = b""
        self.reads = 0
        self.status: Active | Ended = Active()

    def print(self, *lines: str) -> None:
        self.data += "".join(f"{each}\n" for each in lines).encode()

    def read(self) -> Generator[bytes, None, None]:
        self.reads += 1
        yield self.data


@pytest.fixture
def printing(monkeypatch: pytest.MonkeyPatch, cluster: OfflineCluster) -> Printing:
    printing = Printing()
    monkeypatch.setattr(log_feed_module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(cluster, "status", lambda *_: printing.status)
    monkeypatch.setattr(
        cluster, "logs", lambda *_: {"driver": printing.read, "worker-0": printing.read}
    )
    return printing


def opened(page: Page, job_id: str) -> Page:
    """The page with its log, once that is followed."""
    page.goto(f"/jobs/{job_id}")
    with page.expect_response("**/logs/live?*"):
        page.get_by_text("What the attempt's processes printed").click()
    return page


def numbered(*numbers: int) -> list[str]:
    return [f"line {number:05}" for number in numbers]


def test_lines_come_as_they_are_printed_and_nothing_is_asked(
    live: httpx.Client, new_page: NewPage, second_attempt: str, store: Store, printing: Printing
) -> None:
    printing.print("first line")
    page = opened(new_page(str(live.base_url)), second_attempt)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    log = page.locator("pre.log")
    expect(log).to_have_text("first line\n")
    printing.print("second line")
    expect(log).to_have_text("first line\nsecond line\n")
    printing.print(*CRAFTED)
    expect(log).to_contain_text("txt.exe")
    for payload in PAYLOADS:
        expect(log).to_contain_text(payload)
    assert log.locator("code *").count() == 0
    assert "stolen" not in page.title()
    assert asked == []
    printing.print("last line")
    printing.status = Ended("FAILED")
    store.attempts.fail(second_attempt, 2, SolveFailed("No solution.").failure(), at_once(1))
    expect(log).to_contain_text("last line")
    expect(page.locator(".log-bar [role=status]")).to_have_text("The log is complete.")
    expect(page.locator(".log-bar button")).to_be_hidden()


def test_a_log_appears_when_an_attempt_begins_and_again_with_the_next_one(
    live: httpx.Client,
    new_page: NewPage,
    store: Store,
    job_body: dict[str, Any],
    printing: Printing,
) -> None:
    job_id = store.users(DEFAULT_TENANT).create(JobSpec.model_validate(job_body)).id
    page = new_page(str(live.base_url))
    with page.expect_response("**/live?*"), page.expect_response("**/events?after=*"):
        page.goto(f"/jobs/{job_id}")
    page.get_by_text("What the attempt's processes printed").click()
    expect(page.locator(".log-part")).to_contain_text("No attempt has begun.")
    printing.print("first line")
    store.claims.claim()
    expect(page.get_by_label("Log of driver, attempt 1")).to_have_text("first line\n")
    printing.print("second line")
    expect(page.locator("pre.log")).to_have_text("first line\nsecond line\n")
    store.attempts.fail(job_id, 1, WorkerLost("It died.").failure(), at_once(3))
    printing.data = b"of the second attempt\n"
    store.claims.claim()
    expect(page.get_by_label("Log of driver, attempt 2")).to_have_text("of the second attempt\n")
    printing.print("and more")
    expect(page.locator("pre.log")).to_contain_text("and more")


def test_it_is_paused_and_scrolled_by_keyboard(
    live: httpx.Client, new_page: NewPage, second_attempt: str, printing: Printing
) -> None:
    printing.print(*numbered(*range(100)))
    page = opened(new_page(str(live.base_url)), second_attempt)
    log, status = page.locator("pre.log"), page.locator(".log-bar [role=status]")
    expect(log).to_contain_text("line 00099")
    assert log.evaluate(AT_END)
    page.get_by_role("button", name="Pause").focus()
    page.keyboard.press("Enter")
    expect(status).to_have_text("Paused.")
    printing.print(*numbered(100, 101))
    expect(page.locator(".waiting")).to_have_text("2 new lines")
    expect(log).not_to_contain_text("line 00100")
    page.keyboard.press("Space")
    expect(status).to_have_text("Follows the log.")
    expect(log).to_contain_text("line 00101")
    expect(page.locator(".waiting")).to_have_text("")
    assert log.evaluate(AT_END)

    log.focus()
    log.evaluate(SAY_WHERE_IT_RESTS)
    page.keyboard.press("Home")
    expect(status).to_have_text("Paused.")
    printing.print(*numbered(102))
    expect(page.locator(".waiting")).to_have_text("1 new line")
    # It scrolls smoothly. A browser ignores a key that comes before the last frame of that.
    expect(log).to_have_attribute("data-rests-at", "0")
    page.keyboard.press("End")
    expect(log).to_contain_text("line 00102")
    expect(status).to_have_text("Follows the log.")
    wait_until(lambda: log.evaluate(AT_END))
    assert serious_faults(page) == []


def test_the_page_keeps_the_last_lines_and_offers_the_older_ones(
    live: httpx.Client, new_page: NewPage, second_attempt: str, printing: Printing
) -> None:
    printing.print(*numbered(*range(1000)))
    page = opened(new_page(str(live.base_url)), second_attempt)
    log = page.locator("pre.log")
    expect(log).to_contain_text("line 00999")
    expect(page.get_by_role("link", name="Older lines")).to_be_hidden()
    for first in range(1000, 12_000, 1000):
        printing.print(*numbered(*range(first, first + 1000)))
        expect(log).to_contain_text(f"line {first + 999:05}")
    lines = (log.text_content() or "").splitlines()
    assert 4000 <= len(lines) <= 5000
    assert lines == numbered(*range(12_000 - len(lines), 12_000))
    page.get_by_role("link", name="Older lines").click()
    expect(log).to_contain_text(f"line {12_000 - len(lines) - 1:05}")
    expect(log).not_to_contain_text(lines[0])


def test_a_log_that_is_not_looked_at_is_not_read(
    live: httpx.Client, new_page: NewPage, second_attempt: str, printing: Printing
) -> None:
    printing.print("first line")
    page = opened(new_page(str(live.base_url)), second_attempt)
    log = page.locator("pre.log")
    expect(log).to_have_text("first line\n")
    summary = page.get_by_text("What the attempt's processes printed")
    summary.click()
    expect(log).to_be_hidden()
    printing.print("second line")
    with page.expect_response("**/logs/live?*after=11"):
        summary.click()
    expect(log).to_have_text("first line\nsecond line\n")
    with page.expect_response("**/logs/live?*source=worker-0*"):
        page.get_by_label("Process").select_option("worker-0")
    expect(page.get_by_label("Log of worker-0, attempt 2")).to_contain_text("second line")
    printing.print("third line")
    expect(log).to_have_text("first line\nsecond line\nthird line\n")

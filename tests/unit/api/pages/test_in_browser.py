"""Pages in a real browser."""

from __future__ import annotations

import httpx
import pytest

from service.domain.job import DEFAULT_TENANT
from service.domain.spec import JobSpec
from service.store.store import Store
from tests.fixtures.browser import NewPage, serious_faults


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_list_of_jobs(
    new_page: NewPage, live: httpx.Client, store: Store, job_spec: JobSpec, scheme: str, width: int
) -> None:
    store.users(DEFAULT_TENANT).create(job_spec)
    page = new_page(
        str(live.base_url), color_scheme=scheme, viewport={"width": width, "height": 800}
    )
    page.goto("/")
    assert page.get_by_role("heading", name="Jobs").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert serious_faults(page) == []
    page.get_by_role("link", name=job_spec.name or "job-").first.click()
    page.wait_for_url("**/jobs/*")
    assert serious_faults(page) == []

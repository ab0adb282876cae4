"""Walks over the web page as a visitor does: ``python -m bench.page_walk``, or `make walk`.

Chromium, without a window, drives the page of a real `eigenpress serve` with the demo's model: it
signs in, reads an estimate, submits a job and watches it to its end, looks at each picture,
downloads, cancels another job, and reads why a third one has failed. Every page must fit a phone
and a screen in both schemes and have no serious fault by axe; no page may ask another origin or
print an error to its console. Pictures of what it saw are left in ``.eigenpress/walk/pictures``.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from pathlib import Path

from playwright.sync_api import Page

from bench import demo_data
from bench.demo_server import serving
from bench.screenshots import browser
from service.client.client import Client
from tests.fixtures import page_walk
from tests.fixtures.browser import check_looks, watched_pages

FOLDER = Path(".eigenpress/walk")
JOB_SECONDS = 3600.0
ESTIMATE = "keep-0.8"
FIELDS = {
    "calibration.data.local.pattern": "**/*.py",
    "calibration.sequences": "16",
    "calibration.sequence_length": "128",
    "calibration.batch_size": "8",
    "evaluation.sequences": "8",
    "evaluation.decode_tokens": "8",
    "dtype": "bfloat16",
    "workers": "2",
    "more": '{"evaluation": {"prompts": ["def quicksort(items):"]}}',
}
TOO_SHORT = "calibration_too_short"


def main() -> int:
    """Walk, with a job on SmolLM2-135M-Instruct; any fault raises AssertionError or a timeout."""
    folder = FOLDER.absolute()
    shutil.rmtree(folder, ignore_errors=True)
    data, pictures = folder / "data", folder / "pictures"
    for each in (folder / "server", pictures, data / "short"):
        each.mkdir(parents=True)
    demo_data.copy_standard_library(data / "stdlib")
    (data / "short" / "one.py").write_text("print('to calibrate is to listen')\n")
    model = demo_data.model_file()
    command = [sys.executable, "-m", "service.cli.main", "serve"]
    with (
        serving(command, folder / "server", [data, model.parent]) as server,
        Client(server.url, key=server.key) as client,
        browser() as chromium,
        watched_pages(chromium) as new_page,
    ):
        walk = Walk(new_page(server.url, reduced_motion="reduce"), pictures)
        page = walk.page
        page_walk.sign_in(page, server.key)
        wanted = page_walk.Wanted("walk", model, data / "stdlib", FIELDS)
        job = page_walk.submit(page, wanted, ESTIMATE)
        walk.saw("a job is submitted")
        page_walk.watch_to_end(page, JOB_SECONDS)
        walk.saw("it has succeeded")
        for number, picture in enumerate(page_walk.look_at_pictures(page, [ESTIMATE])):
            picture.screenshot(path=pictures / f"picture-{number:02}.png")
        walk.looks("job")
        name = "model.safetensors"
        (artifact,) = client.artifacts(job)
        (listed,) = [each for each in artifact["files"] if each["path"] == name]
        content = page_walk.download(page, name)
        assert hashlib.sha256(content).hexdigest() == listed["sha256"]
        walk.saw(f"{name} is downloaded: {len(content):,} bytes with the manifest's SHA-256")

        other = page_walk.Wanted("another", model, data / "stdlib", FIELDS)
        page_walk.submit(page, other, ESTIMATE)
        page_walk.cancel(page, JOB_SECONDS)
        walk.saw("another job is cancelled")
        walk.looks("job-cancelled")

        short = page_walk.Wanted("short", model, data / "short", FIELDS)
        page_walk.submit(page, short, ESTIMATE)
        page_walk.read_failure(page, TOO_SHORT, JOB_SECONDS)
        walk.saw("a job on too short a text has failed, and the page says what to do")
        walk.looks("job-failed")
        for name, path in (
            ("jobs", "/"),
            ("new", f"/new?from={job}"),
            ("compare", f"/compare?job={job}"),
        ):
            page.goto(path)
            walk.looks(name)
        walk.saw("every page fits and can be used, at two widths and in both schemes")
    return 0


class Walk:
    """The page, what was seen so far, and the folder for its pictures."""

    def __init__(self, page: Page, pictures: Path) -> None:
        self.page = page
        self._pictures = pictures
        self._began = time.monotonic()

    def saw(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.0f} s  {what}", flush=True)

    def looks(self, name: str) -> None:
        """Check the page at two widths and in both schemes, and keep its pictures."""
        check_looks(self.page)
        for width in (390, 1400):
            self.page.set_viewport_size({"width": width, "height": 900})
            for scheme in ("light", "dark"):
                self.page.emulate_media(color_scheme=scheme)
                file = self._pictures / f"{name}-{width}-{scheme}.png"
                self.page.screenshot(path=file, full_page=True)
        self.page.emulate_media(color_scheme="light")


if __name__ == "__main__":
    raise SystemExit(main())

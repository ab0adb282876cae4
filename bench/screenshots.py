"""Takes pictures of the web page: ``python -m bench.screenshots``, or `make screenshots`.

The real API and its pages run here, on a database with a few jobs. There is no Ray and no bucket:
the jobs' progress is written for the pictures, see `bench.screenshot_jobs`.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page
from pydantic import SecretStr
from transformers import AutoModelForCausalLM, LlamaConfig

from api.app import create_app
from api.rates import Rates
from api.services import Services
from bench.screenshot_jobs import RECOVERED, RUNNING, SUCCEEDED, seed
from service.datasets.receiver import Receiver
from service.estimates.estimate import Estimates
from service.inputs.checks import SubmissionChecks
from service.logs.attempt_logs import AttemptLogs
from service.logs.mask import Mask
from service.settings import Settings
from service.standalone.ports import LOOPBACK, choose_port
from service.store.store import Store
from tests.fixtures.browser import CHROMIUM, launched
from tests.fixtures.models import byte_tokenizer
from tests.fixtures.waiting import wait_until
from tests.unit.api.conftest import OfflineCluster, OfflineStorage

FOLDER = Path("docs/images")
SMOLLM = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)


@dataclass(frozen=True)
class Picture:
    """A page as it looks at a width and in a scheme."""

    name: str
    path: str
    width: int = 1200
    height: int = 800
    scheme: Literal["light", "dark"] = "light"
    fill: dict[str, str] = field(default_factory=dict)
    """What is typed into the page's form."""


def main(arguments: list[str] | None = None) -> int:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=FOLDER, help="the folder for the pictures")
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.gettempdir()) / "eigenpress-pictures"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with installation(folder) as (url, ids), browser() as chromium:
            for picture in pictures(folder / "inputs", ids):
                file = out / f"{picture.name}.png"
                file.write_bytes(taken(chromium, url, picture))
                print(f"{file}: {file.stat().st_size / 1000:.0f} kB")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


def pictures(inputs: Path, ids: dict[str, str]) -> list[Picture]:
    """All pictures; the ids are those of jobs by their names."""
    form = {
        "model.local.path": str(inputs / "smollm2-135m"),
        "calibration.data.local.path": str(inputs / "code"),
        "name": "smollm2-code",
    }
    compared = "/compare?" + "&".join(f"job={ids[name]}" for name in SUCCEEDED)
    phone: dict[str, Any] = {"width": 390, "height": 844}
    return [
        Picture("jobs", "/"),
        Picture("jobs-phone-dark", "/", **phone, scheme="dark"),
        Picture("new-job", "/new", height=1000, fill=form),
        Picture("new-job-phone-dark", "/new", **phone, scheme="dark", fill=form),
        Picture("job", f"/jobs/{ids[RECOVERED]}", height=1300),
        Picture("job-running", f"/jobs/{ids[RUNNING]}", height=1000),
        Picture("job-failed-dark", f"/jobs/{ids['smollm2-short']}", height=900, scheme="dark"),
        Picture("compare", compared, height=1000),
        Picture("compare-dark", compared, height=1000, scheme="dark"),
    ]


def taken(browser: Browser, url: str, picture: Picture) -> bytes:
    """The picture as a PNG with a palette, a third as large as without."""
    context = browser.new_context(
        base_url=url,
        viewport={"width": picture.width, "height": picture.height},
        color_scheme=picture.scheme,
        reduced_motion="reduce",
        timezone_id="UTC",
        locale="en-GB",
    )
    with closing(context):
        page = context.new_page()
        page.goto(picture.path)
        show(page, picture)
        image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    small = io.BytesIO()
    # Colours of few pixels stay what they are, and large areas as well.
    image.quantize(256, Image.Quantize.MAXCOVERAGE, 4, dither=Image.Dither.NONE).save(
        small, "PNG", optimize=True
    )
    return small.getvalue()


def show(page: Page, picture: Picture) -> None:
    """Fill in the form and wait for its estimate."""
    if not picture.fill:
        return
    for name, text in picture.fill.items():
        page.fill(f"[name='{name}']", text)
    page.wait_for_selector("#estimate table", timeout=60_000)
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")


@contextmanager
def browser() -> Iterator[Browser]:
    path = shutil.which(CHROMIUM)
    if path is None:
        raise SystemExit("Pictures need chromium: apt-get install chromium")
    with launched(path) as chromium:
        yield chromium


@contextmanager
def installation(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The address of an API with jobs, and their ids by their names."""
    inputs = folder / "inputs"
    save_model(inputs / "smollm2-135m")
    (inputs / "code").mkdir()
    (inputs / "code" / "first.py").write_text("print('to calibrate is to listen')\n" * 9999)
    settings = Settings(
        data_dir=folder / "data",
        allowed_roots=(inputs,),
        require_keys=False,
        ray_address="http://ray.test:8265",
        s3_endpoint_url="http://s3.test:8333",
        s3_access_key_id=SecretStr("key"),
        s3_secret_access_key=SecretStr("secret"),
    )
    settings.data_dir.mkdir()
    storage = OfflineStorage(settings, settings.s3_bucket)
    with ExitStack() as opened:
        store = opened.enter_context(closing(Store(settings.database)))
        store.migrate()
        cluster = opened.enter_context(OfflineCluster(settings.ray_address, "driver"))
        checks = opened.enter_context(SubmissionChecks(settings, storage))
        services = Services(
            settings,
            store,
            storage,
            cluster,
            checks,
            Estimates(settings, store, cluster, checks),
            Rates(settings.requests_per_minute),
            AttemptLogs(cluster, storage, Mask.of(settings)),
            opened.enter_context(Receiver(settings, store, storage)),
        )
        ids = seed(store, inputs)
        yield opened.enter_context(serving(services)), ids


@contextmanager
def serving(services: Services) -> Iterator[str]:
    app = create_app(services.settings, lambda _: nullcontext(services))
    port = choose_port(0, "pictures")
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield f"http://{LOOPBACK}:{port}"
    finally:
        server.should_exit = True
        thread.join()


def save_model(folder: Path) -> None:
    """A model's configuration and the headers of its weights, which take no space."""
    folder.mkdir(parents=True)
    SMOLLM.architectures = ["LlamaForCausalLM"]
    SMOLLM.save_pretrained(folder)
    byte_tokenizer(adds_bos=False).save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SMOLLM)
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in model.named_parameters():
        start, end = end, end + 2 * tensor.numel()
        shape = list(tensor.shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


if __name__ == "__main__":
    raise SystemExit(main())

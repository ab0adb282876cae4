"""Takes pictures of the web page: ``python -m bench.screenshots``, or `make screenshots`.

The real API and its pages run here, on a database with a few jobs. There is no Ray and no bucket:
the jobs' progress is written for the pictures. The perplexities are those of docs/quality.md.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page
from pydantic import SecretStr
from sqlalchemy import select, update
from transformers import AutoModelForCausalLM, LlamaConfig

from api.app import create_app
from api.rates import Rates
from api.services import Services
from service.datasets.receiver import Receiver
from service.domain.job import DEFAULT_TENANT
from service.domain.spec import JobSpec
from service.domain.states import JobState, Step
from service.errors import CalibrationTooShort
from service.estimates.estimate import Estimates
from service.inputs.checks import SubmissionChecks
from service.logs.attempt_logs import AttemptLogs
from service.logs.mask import Mask
from service.settings import Settings
from service.standalone.ports import LOOPBACK, choose_port
from service.store import tables
from service.store.store import Store
from tests.fixtures.browser import CHROMIUM, launched
from tests.fixtures.jobs import at_once
from tests.fixtures.models import byte_tokenizer
from tests.fixtures.waiting import wait_until
from tests.unit.api.conftest import OfflineCluster, OfflineStorage

FOLDER = Path("docs/images")
QUALITY = Path("docs/quality.md")
SMOLLM = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
LINEAR, PARAMETERS = 106_168_320, 134_515_008
"""The model's parameters: of its linear layers, and all."""


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
        Picture("job", f"/jobs/{ids['smollm2-kron']}", height=1200),
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


SUCCEEDED = {
    "smollm2-kron": ("impact-kron, global, interpolative", "impact-kron"),
    "smollm2-impact": ("impact, global, interpolative", "impact"),
    "smollm2-svd-llm": ("svd-llm, uniform, factors", "svd-llm"),
}
"""Jobs that have succeeded: their rows in docs/quality.md, and their methods."""


def seed(store: Store, inputs: Path) -> dict[str, str]:
    """Jobs of all kinds, the newest last."""
    users, attempts = store.users(DEFAULT_TENANT), store.attempts
    ids: dict[str, str] = {}

    def make(name: str, **fields: Any) -> str:
        body = {
            "name": name,
            "model": {"source": "local", "path": str(inputs / "smollm2-135m")},
            "calibration": {"data": {"source": "local", "path": str(inputs / "code")}},
            "targets": [{"keep": keep} for keep in (0.9, 0.8, 0.7, 0.6)],
        }
        ids[name] = users.create(JobSpec.model_validate(body | fields)).id
        return ids[name]

    def begin(job_id: str) -> None:
        store.claims.claim()
        attempts.progress(job_id, 1, Step.RESOLVE, 1, 1, "models")

    for name, (row, method) in SUCCEEDED.items():
        allocation = "uniform" if "uniform" in row else "global"
        made = make(name, method=method, allocation=allocation, labels={"team": "ml"})
        begin(made)
        attempts.succeed(made, 1, report(row))
    made = make("smollm2-short", labels={"team": "search", "stage": "trial"})
    begin(made)
    failure = CalibrationTooShort("The text has 40,192 tokens; 65,536 are needed.").failure()
    attempts.fail(made, 1, failure, at_once(1))
    users.cancel(make("smollm2-typo"))
    made = make("smollm2-code", labels={"team": "ml"}, targets=[{"bytes_fraction": 0.3}])
    begin(made)
    attempts.progress(made, 1, Step.CALIBRATE, 83, 128, "sequences")
    make("smollm2-quality", targets=[{"max_perplexity_increase": 0.1}], labels={"team": "search"})
    make("smollm2-next", targets=[{"keep": 0.5}])
    assert users.get(ids["smollm2-code"]).state is JobState.RUNNING
    for number, job_id in enumerate(reversed(ids.values())):
        backdate(store, job_id, timedelta(minutes=7 + 23 * number), timedelta(seconds=412))
    return ids


def backdate(store: Store, job_id: str, age: timedelta, length: timedelta) -> None:
    """Make the job older, and let its attempt have taken so long."""
    jobs = tables.jobs
    with store._database.writing() as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one()
        begun = row.created_at - age
        times = {"created_at": begun}
        if row.started_at is not None:
            times["started_at"] = begun + timedelta(seconds=2)
        if row.finished_at is not None:
            times["finished_at"] = begun + length
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(times))


def report(row: str) -> dict[str, Any]:
    """What a report says of sizes and perplexities, from docs/quality.md."""
    text = QUALITY.read_text()
    targets: dict[str, dict[str, Any]] = {}
    dense: dict[str, dict[str, float]] = {}
    for name in ("held-out", "humaneval"):
        section = text.partition(f"## Perplexity, {name}\n")[2]
        (before,) = re.findall(r"The dense model has ([\d.]+)\.\n", section.partition("|")[0])
        dense[name] = {"perplexity": float(before)}
        header, line = (
            [cell.strip() for cell in each.strip("|").split("|")]
            for each in (
                re.findall(r"^\| method.*$", section, re.MULTILINE)[0],
                re.findall(rf"^\| {re.escape(row)} .*$", section, re.MULTILINE)[0],
            )
        )
        for keep, value in list(zip(header[1:], line[1:], strict=True))[:4]:
            kept = PARAMETERS - LINEAR + round(float(keep) * LINEAR)
            target = targets.setdefault(
                keep,
                {
                    "name": f"keep-{keep}",
                    "size": {"parameters": kept, "bytes": 2 * kept},
                    "perplexity": {},
                },
            )
            ratio = float(value) / float(before)
            target["perplexity"][name] = {"perplexity": float(value), "ratio": ratio}
    return {
        "model": {"parameters": PARAMETERS, "dense_bytes": 2 * PARAMETERS},
        "evaluation": {"dense": {"perplexity": dense}},
        "targets": list(targets.values()),
    }


if __name__ == "__main__":
    raise SystemExit(main())

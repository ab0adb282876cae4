"""The product as users run it: `eigenpress serve`, REST and the command line, on real parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from playwright.sync_api import expect
from transformers import AutoModelForCausalLM, MambaConfig

from bench.demo_server import Server, serving
from service.client.answers import Job
from service.client.client import ApiProblem, Client
from service.cluster.ray_jobs import authorization
from service.domain.states import JobState
from service.settings import Settings
from service.storage.s3 import ObjectStorage
from tests.fixtures import page_walk
from tests.fixtures.browser import NewPage, serious_faults
from tests.fixtures.models import save_tiny_model, tiny_llama_config
from tests.fixtures.waiting import wait_until

GENERATE = Path(__file__).parents[2] / "bench" / "generate.py"
STEPS = ["resolve", "calibrate", "solve", "allocate", "assemble", "prove", "evaluate", "publish"]
JOB_SECONDS = 240.0
TENANTS_TOKEN = "hf_canary0123456789"
TARGETS = [{"keep": 0.8}, {"keep": 0.6}, {"bytes_fraction": 0.5, "precisions": "transformers"}]
NAMES = ["keep-0.8", "keep-0.6", "bytes-0.5-transformers"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that jobs may read: models and texts."""
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_model(folder / "llama", tiny_llama_config())
    save_tiny_model(
        folder / "mamba",
        MambaConfig(hidden_size=32, num_hidden_layers=1, state_size=4, vocab_size=258),
    )
    for name, lines in (("texts", 60), ("short", 1)):
        (folder / name).mkdir()
        for number in range(30):
            text = f"def power_{number}(x):\n    return x ** {number}\n" * lines
            (folder / name / f"{number}.py").write_text(text)
    (folder / "second.jsonl").write_text(
        "".join(json.dumps({"text": f"line {n} of another text"}) + "\n" for n in range(8))
    )
    return folder


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def server(inputs: Path, data_dir: Path) -> Iterator[Server]:
    command = [sys.executable, "-m", "service.cli.main", "serve", "--num-cpus", "2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_TOKEN")  # it makes a token of its own
        with serving(command, data_dir, [inputs]) as running:
            yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, key=server.key) as client:
        yield client


def body(inputs: Path, **changes: Any) -> dict[str, Any]:
    """A job on the tiny Llama; `changes` replace top-level fields."""
    calibration = {
        "data": {"source": "local", "path": str(inputs / "texts"), "pattern": "*.py"},
        "sequences": 24,
        "sequence_length": 32,
        "batch_size": 4,
    }
    second = {"name": "second", "data": {"source": "local", "path": str(inputs / "second.jsonl")}}
    return {
        "name": "tiny",
        "model": {"source": "local", "path": str(inputs / "llama")},
        "calibration": calibration,
        "targets": TARGETS,
        "evaluation": {"sequences": 8, "datasets": [second], "decode_tokens": 8},
        "workers": 2,
    } | changes


def finished(client: Client, job_id: str) -> Job:
    """The job once it has ended, whichever way."""
    ended = ("succeeded", "failed", "cancelled")
    wait_until(lambda: client.job(job_id)["state"] in ended, JOB_SECONDS)
    return client.job(job_id)


@pytest.fixture(scope="module")
def done(client: Client, inputs: Path) -> Job:
    """A job that ran to its end."""
    return finished(client, client.submit(body(inputs))["id"])


@pytest.fixture(scope="module")
def downloads(server: Server, done: Job, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All artifacts, as the command line downloads them."""
    assert done["state"] == "succeeded", done
    folder = tmp_path_factory.mktemp("downloads")
    for name in NAMES:
        run_cli(server.key, server.url, "download", done["id"], name, str(folder / name))
    return folder


def run_cli(key: str, url: str, *arguments: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "service.cli.main", *arguments]
    env = os.environ | {"EIGENPRESS_KEY": key, "EIGENPRESS_URL": url}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + (done.stderr if status else "")


def test_a_job_runs_through_its_steps(client: Client, done: Job) -> None:
    assert done["state"] == "succeeded", done
    assert [step["step"] for step in done["steps"]] == STEPS
    assert all(step["done"] == step["total"] and step["finished_at"] for step in done["steps"])
    types = [event["type"] for event in client.events(done["id"])]
    assert types[0] == "job.queued"
    assert types[-1] == "job.succeeded"


def test_two_workers_shared_the_work_and_saw_no_gpu(client: Client, done: Job) -> None:
    events = client.events(done["id"])
    (placed,) = [event for event in events if event["type"] == "workers.placed"]
    workers = placed["data"]["workers"]
    assert [worker["worker"] for worker in workers] == [0, 1]
    assert len({worker["pid"] for worker in workers}) == 2
    assert all(worker["gpu_ids"] == [] for worker in workers)
    assert all(worker["cuda_visible_devices"] == "" for worker in workers)


def test_the_report_says_every_size_and_perplexity(client: Client, done: Job) -> None:
    report = client.report(done["id"])
    dense = report["evaluation"]["dense"]
    assert set(dense["perplexity"]) == {"held-out", "second"}
    assert dense["perplexity"]["second"]["documents"] == 8
    assert report["calibration"]["tokens"] == 24 * 32
    model, targets = report["model"], report["targets"]
    assert (model["source_format"], report["dtype"]) == ("safetensors", "float32")
    assert model["source_bytes"] == model["bytes"] >= model["dense_bytes"]
    assert model["dense_bytes"] == 4 * model["parameters"]
    assert [target["name"] for target in targets] == NAMES
    for target in targets[:2]:
        assert 0.9 * target["keep"] < target["size"]["linear_fraction"] <= target["keep"]
        assert target["size"]["model_fraction"] < 1
    assert 0.45 < targets[2]["size"]["linear_bytes_fraction"] <= 0.5
    for target in targets:
        assert target["size"]["bytes"] < report["model"]["bytes"]
        assert set(target["perplexity"]) == set(target["accuracy"]) == {"held-out", "second"}
        assert target["perplexity"]["held-out"]["ratio_standard_error"] > 0
        assert len(target["layers"]) == 14
        assert target["decode_tokens_per_second"] > 0
    assert set(report["seconds"]) == set(STEPS) - {"publish"}
    assert {entry["name"] for entry in report["left_dense"]} == {"model.embed_tokens.weight"}


def test_the_dashboard_shows_the_job_its_actors_and_its_log(server: Server, done: Job) -> None:
    attempt = f"{done['id']}-1"
    headers = authorization({"RAY_AUTH_TOKEN_PATH": str(server.token_path)})
    with httpx.Client(base_url=server.dashboard_url, headers=headers, trust_env=False) as dashboard:

        def job() -> dict[str, Any]:
            found: dict[str, Any] = dashboard.get(f"/api/jobs/{attempt}").raise_for_status().json()
            return found

        wait_until(lambda: job()["status"] == "SUCCEEDED")  # once its driver has shut down
        assert job()["metadata"]["job_name"] == "tiny"
        assert "logs" in dashboard.get(f"/api/jobs/{attempt}/logs").raise_for_status().json()
        actors = dashboard.get("/api/v0/actors").raise_for_status().json()
        names = {actor["name"] for actor in actors["data"]["result"]["result"]}
    assert {f"{attempt}/{actor}" for actor in ("worker-0", "worker-1")} <= names


def test_artifacts_load_and_write_without_the_product(downloads: Path) -> None:
    for name in NAMES:
        command = [sys.executable, "-I", str(GENERATE), str(downloads / name)]
        environment = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(downloads / "modules")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr


def test_an_expanded_artifact_is_a_plain_llama_that_computes_the_same(
    downloads: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "dense"
    run_cli("", "", "expand", str(downloads / "keep-0.6"), str(folder))
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    compressed = AutoModelForCausalLM.from_pretrained(
        downloads / "keep-0.6", trust_remote_code=True
    )
    dense = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.randint(258, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            dense(tokens).logits, compressed(tokens).logits, rtol=1e-5, atol=1e-5
        )


def failed_job(client: Client, inputs: Path, **changes: Any) -> Job:
    job = finished(client, client.submit(body(inputs, workers=1, **changes))["id"])
    assert job["state"] == "failed"
    assert job["attempt"] == 1, "a user's mistake is not tried again"
    with pytest.raises(ApiProblem) as refused:
        client.artifacts(job["id"])
    assert refused.value.status == 409
    return job


def test_too_short_a_text_fails_the_job_by_name(client: Client, inputs: Path) -> None:
    short = body(inputs)["calibration"]
    short["data"]["path"] = str(inputs / "short")
    short["sequences"] = 500
    error = failed_job(client, inputs, calibration=short)["error"]
    assert error is not None
    assert error["code"] == "calibration_too_short"
    assert error["param"] == "calibration.sequences"
    assert "not the 500 that the job needs" in error["detail"]


def test_a_model_with_another_kind_of_layer_is_refused_by_name(
    client: Client, inputs: Path
) -> None:
    with pytest.raises(ApiProblem) as caught:
        client.submit(body(inputs, model={"source": "local", "path": str(inputs / "mamba")}))
    assert caught.value.code == "unsupported_layer"
    assert caught.value.param == "model"
    assert "layers.0.mixer is a MambaMixer" in caught.value.detail


def test_a_running_job_can_be_cancelled(client: Client, inputs: Path) -> None:
    long = body(inputs)["calibration"] | {"sequences": 400, "batch_size": 1}
    job_id = client.submit(body(inputs, calibration=long, workers=1))["id"]
    wait_until(
        lambda: any(step["step"] == "calibrate" for step in client.job(job_id)["steps"]),
        JOB_SECONDS,
    )
    assert client.cancel(job_id)["state"] == "cancelling"
    assert finished(client, job_id)["state"] == "cancelled"


def test_a_job_by_the_web_page(
    server: Server, client: Client, inputs: Path, done: Job, new_page: NewPage
) -> None:
    """Sign in, estimate, submit, watch, cancel; look at results and download; read why one failed.

    It takes some 30 seconds, in which a worker starts.
    """
    page = new_page(server.url)
    page_walk.sign_in(page, server.key)
    fields = {"sequences": "400", "sequence_length": "32", "batch_size": "1"}
    long = page_walk.Wanted(
        "by-page",
        inputs / "llama",
        inputs / "texts",
        {f"calibration.{name}": number for name, number in fields.items()},
    )
    page_walk.submit(page, long, "keep-0.8")
    page_walk.cancel(page, seconds=120)

    page.goto(f"/jobs/{done['id']}")
    page_walk.look_at_pictures(page, NAMES)
    assert serious_faults(page) == []
    assert json.loads(page_walk.download(page, "report.json")) == client.report(done["id"])

    short = body(inputs)["calibration"] | {"sequences": 500}
    short["data"] = short["data"] | {"path": str(inputs / "short")}
    failed = client.submit(body(inputs, calibration=short))["id"]
    page.goto(f"/jobs/{failed}")
    page_walk.read_failure(page, "calibration_too_short", seconds=120)
    page.goto("/")
    expect(page.locator(f"#{failed}")).to_contain_text("Failed")


def test_nothing_of_a_failed_or_cancelled_job_is_left_but_its_logs(
    data_dir: Path, client: Client, done: Job
) -> None:
    (artifact, *_) = client.artifacts(done["id"])
    url = httpx.URL(artifact["files"][0]["url"])
    credentials = json.loads((data_dir / "s3" / "credentials.json").read_text())
    storage = ObjectStorage.from_settings(
        Settings(
            s3_endpoint_url=str(url.copy_with(path="/", query=None)),
            s3_access_key_id=credentials["access_key_id"],
            s3_secret_access_key=credentials["secret_access_key"],
        )
    )

    def jobs_in_the_bucket() -> set[str]:
        keys = [found.key.split("/") for found in storage.list_objects("jobs/")]
        return {job_id for _, job_id, kind, *_ in keys if kind != "logs"}

    succeeded = {job["id"] for job in client.jobs(states=[JobState.SUCCEEDED])["jobs"]}
    wait_until(lambda: jobs_in_the_bucket() == succeeded)
    assert list((data_dir / "scratch").iterdir()) == []


def test_a_tenant_whose_users_share_no_disk_with_the_server(
    server: Server, inputs: Path, tmp_path: Path
) -> None:
    """From a key to a deletion, with the command line and curl, as docs/api.md says."""
    admin = partial(run_cli, server.key, server.url)
    admin("tenants", "create", "team-a", "--max-queued", "5")
    key = admin("keys", "create", "--scope", "submitter", "--tenant", "team-a").strip()
    user = partial(run_cli, key, server.url)
    reader = admin("keys", "create", "--scope", "reader", "--tenant", "team-a").strip()
    (tmp_path / "token").write_text(TENANTS_TOKEN)  # which the driver opens
    put = ("put-hub", "team-a", "hub", "--from", str(tmp_path / "token"), "--json")
    assert json.loads(admin("tenants", "credentials", *put))["kind"] == "hub"

    rows = [{"text": f"def power_{n}(x):\n    return x ** {n}\n" * 20} for n in range(60)]
    laptop = tmp_path / "laptop.jsonl"
    laptop.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": ""}]))
    dataset = user("datasets", "upload", str(laptop), "--name", "powers").strip()
    (listed,) = json.loads(user("datasets", "list", "--json"))["datasets"]
    assert (listed["id"], listed["documents"], listed["empty_rows"]) == (dataset, 60, 1)

    job_body = tmp_path / "job.yaml"
    job_body.write_text(
        f"model: {{source: local, path: {inputs / 'llama'}}}\n"
        f"calibration: {{data: {{source: dataset, id: {dataset}}}, sequences: 16, "
        "sequence_length: 32}\n"
        "targets: [{keep: 0.8}]\n"
        "evaluation: {sequences: 8}\n"
        "workers: 1\n"
    )
    estimated = json.loads(user("estimate", "-f", str(job_body), "--json"))
    assert estimated["problems"] == []
    job = user("submit", "-f", str(job_body), "--label", "team=a").strip()
    assert "scope_insufficient" in run_cli(reader, server.url, "cancel", job, status=1)
    assert "dataset_in_use" in user("datasets", "delete", dataset, status=1)
    followed = [json.loads(line) for line in user("events", job, "-f", "--json").splitlines()]
    types = [event["type"] for event in followed]
    assert (types[0], types[-1]) == ("job.queued", "job.succeeded")
    assert "texts.used" in types
    assert f"Running entrypoint for job {job}" in user("logs", job)
    assert json.loads(user("show", job, "--json"))["state"] == "succeeded"

    # To another tenant, the administrator's own, there is nothing.
    assert "job_not_found" in admin("show", job, status=1)
    assert dataset not in admin("datasets", "list")

    with_key = ["curl", "--silent", "--show-error", "--fail", "-H", f"Authorization: Bearer {key}"]
    file = f"{server.url}/v1/jobs/{job}/artifacts/keep-0.8/files/config.json"
    curled = subprocess.run([*with_key, "--location", file], capture_output=True, check=True).stdout
    user("download", job, "keep-0.8", str(tmp_path / "artifact"))
    assert (tmp_path / "artifact" / "config.json").read_bytes() == curled

    user("delete", job)
    user("datasets", "delete", dataset)
    assert json.loads(user("jobs", "--json"))["jobs"] == []
    usage = json.loads(admin("tenants", "usage", "team-a", "--json"))
    assert usage == {"running_jobs": 0, "queued_jobs": 0, "stored_bytes": 0}
    audited = subprocess.run(
        [*with_key[:-1], f"Authorization: Bearer {server.key}", f"{server.url}/v1/audit"],
        capture_output=True,
        check=True,
    ).stdout
    changes = [
        each["action"] for each in json.loads(audited)["records"] if each["tenant"] == "team-a"
    ]
    assert changes == ["delete_dataset", "delete", "submit", "upload_dataset"]


def test_no_secret_is_in_what_the_service_writes(server: Server, data_dir: Path) -> None:
    """After all of the above: the logs, the database, Ray's session, and the bucket's objects."""
    s3_keys = json.loads((data_dir / "s3" / "credentials.json").read_text())
    secrets = {
        "admin key": server.key,
        "sign-in code": server.sign_in_url.partition("code=")[2],
        "Ray token": server.token_path.read_text().strip(),
        "S3 key": s3_keys["secret_access_key"],
        "encryption key": (data_dir / "encryption-key").read_text().strip(),
        "tenant's token": TENANTS_TOKEN,
        "credentials key": (data_dir / "credentials-key").read_text().strip(),
    }
    keys = {"admin-key", "encryption-key", "credentials-key"}
    of_secrets = {*keys, "token", "credentials.json", "serve.log"}
    session = Path((data_dir / "ray" / "session").read_text())
    files = [path for folder in (data_dir, session) for path in folder.rglob("*")]
    searched = [path for path in files if path.is_file() and path.name not in of_secrets]
    assert len(searched) > 50
    found = [
        (name, path)
        for path in searched
        for name, secret in secrets.items()
        if secret.encode() in path.read_bytes()
    ]
    assert found == []

"""Every command of the documents runs, or `NOT_RUN` says why not.

The commands of a page run in their order, as a reader would type them, in a folder and a home of
their own, against the API on a real bucket. Ids and folders of the examples become those of things
that exist, and jobs are in the state that the command is for. Of `make` only what it would run is
printed: that shows that the target exists.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import pytest
import uvicorn
from pydantic import SecretStr

from api.app import create_app
from service.domain.job import Job
from service.encryption import new_key
from service.errors import ModelInvalid
from service.standalone.ports import LOOPBACK, choose_port
from service.standalone.s3_server import LocalS3
from service.storage.publication import publish
from service.storage.s3 import ObjectStorage
from service.store.store import Store
from tests.fixtures.jobs import at_once
from tests.fixtures.storage import s3_settings_for
from tests.fixtures.waiting import wait_until
from tests.unit.api.conftest import OfflineCluster

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK: Final = re.compile(
    r"^( *)```(?:sh|shell|bash|console)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL
)
ASSIGNMENT: Final = re.compile(r"(export )?[A-Z_]+=")
ADMIN_KEY: Final = "ep_" + 40 * "a"
SERVER: Final = "http://127.0.0.1:8400"
"""The server of the documents."""
KEY_ID: Final = "k3x9v0qd27sp"
"""The id of a key in the documents."""
MAKE: Final = shutil.which("make")
SECONDS: Final = 60

ELSEWHERE: Final = {
    r"eigenpress expand \S+ \S+ --gguf": (
        "tests/unit/service/cli/test_main.py",
        '["expand", ".", "a.gguf", "--gguf"]',
    )
}
"""Commands that another test runs: its file, and what stands in it."""

NOT_RUN: Final = {
    r"git clone ": "downloads the repository",
    r"\. \.venv/bin/activate": "the tests run in this environment",
    r"pip install ": "installs",
    r"\.venv/bin/pre-commit install": "changes the hooks of the repository",
    r"docker compose ": "needs Docker; tests/acceptance/test_compose.py reads the file",
    r"kubectl |\$KUBE |OLD=\$\(\$KUBE ": "needs a cluster; tests/unit/deploy reads the manifests",
    r"aws ": "needs the client of AWS",
    r"createuser ": "needs an administrator of PostgreSQL",
    r"vllm |python -m sglang|llama-cli ": "needs an engine, and most engines a GPU",
}
"""Why commands that match a pattern from their beginning do not run."""

STATES: Final = {
    r"/cancel": "queued",
    r"/retry": "failed",
    r"-X PATCH|eigenpress (label|priority)": "queued",
    r"": "succeeded",
}
"""The state of the job that a command names: that of the first pattern found in it."""


@dataclass(frozen=True)
class Command:
    """A command of a page, with its line there, if it is longer than one its first."""

    page: Path
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {self.text}"

    def matches(self, pattern: str) -> bool:
        return re.match(pattern, self.text) is not None

    @property
    def runs(self) -> bool:
        return not any(self.matches(pattern) for pattern in (*NOT_RUN, *ELSEWHERE))


def commands(page: Path) -> Iterator[Command]:
    """The commands in the shell blocks of a page."""
    text = page.read_text()
    for block in BLOCK.finditer(text):
        begun: list[str] = []
        first = text[: block.start(2)].count("\n") + 1
        for number, line in enumerate(block[2].splitlines(), first):
            begun.append(line.removeprefix(block[1]))
            command = "\n".join(begun)
            if _is_whole(command):
                yield Command(page, number - len(begun) + 1, command)
                begun = []
        assert not begun, f"{page.name}: a command has no end: {begun}"


def _is_whole(text: str) -> bool:
    """Whether no quotation is open and no further line announced."""
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return not text.endswith("\\")


ALL: Final = [command for page in PAGES for command in commands(page)]
RUN: Final = [page for page in PAGES if any(each.page == page and each.runs for each in ALL)]


@dataclass(frozen=True)
class Installation:
    """The API at an address, with what is behind it."""

    api: httpx.Client
    store: Store
    storage: ObjectStorage
    inputs: Path

    @property
    def url(self) -> str:
        return str(self.api.base_url).rstrip("/")

    @property
    def body(self) -> dict[str, object]:
        """A job of the model and the text that the documents name."""
        return {
            "model": {"source": "local", "path": f"{self.inputs}/models/my-llama"},
            "calibration": {"data": {"source": "local", "path": f"{self.inputs}/text"}},
            "targets": [{"keep": 0.8}],
        }

    def make(self, path: str, **request: object) -> str:
        """The id of what a POST to this path makes."""
        answer = self.api.post(path, **request)  # type: ignore[arg-type]
        assert answer.is_success, answer.text
        return str(answer.json()["id"])

    def job(self, state: str) -> str:
        job_id = self.make("/v1/jobs", json=self.body)
        if state != "queued":
            while (job := self.store.claims.claim()) and job.id != job_id:
                pass
            assert job
            self.succeed(job) if state == "succeeded" else self.fail(job)
        assert self.store.records.get(job_id).state == state
        return job_id

    def succeed(self, job: Job) -> None:
        folder = self.inputs / "models" / "my-llama"
        artifact = publish(self.storage, job.id, job.attempt, "keep-0.8", folder)
        self.store.attempts.published(job.id, job.attempt, 0, artifact)
        report = {"targets": [{"name": "keep-0.8", "perplexity": None}]}
        self.store.attempts.succeed(job.id, job.attempt, report)

    def fail(self, job: Job) -> None:
        failure = ModelInvalid("a tensor is not finite").failure()
        self.store.attempts.fail(job.id, job.attempt, failure, at_once(1))


class Reader:
    """Types commands in a folder with the files that the documents take for granted."""

    def __init__(self, folder: Path, installation: Installation) -> None:
        self._folder = folder
        self._to = installation
        self._assignments: list[str] = []
        self._environment = {
            "PATH": f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "BROWSER": "true",
            "EIGENPRESS_URL": installation.url,
            "EIGENPRESS_KEY": ADMIN_KEY,
        }
        job = json.dumps(installation.body)
        for name, content in {
            ".curlrc": "fail-with-body\nsilent\nshow-error\n",
            ".eigenpress/admin-key": ADMIN_KEY,
            "deploy/secrets/eigenpress_admin_key": ADMIN_KEY,
            "bin/eigenpress": f'#!/bin/sh\nexec {sys.executable} -m service.cli.main "$@"\n',
            "bin/make": f'#!/bin/sh\nexec {MAKE} --dry-run -C {ROOT} "$@"\n',
            "job.json": job,
            "job.yaml": job,
            "hub.json": '{"kind": "hub", "token": "hf_0123456789"}',
            "token.txt": "hf_0123456789",
            "secret.txt": "0123456789",
        }.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
            path.chmod(0o700)
        (folder / "support.jsonl.gz").write_bytes(gzip.compress(b'{"text": "Hello."}\n'))
        shutil.copy(ROOT / "deploy" / "secrets.sh", folder / "deploy")

    def type(self, text: str) -> str:
        """Run the command after the assignments before it; return what went wrong, or nothing."""
        if " -C - " in text:  # a download that broke off
            os.truncate(self._folder / "model.safetensors", 100)
        script = self._with_what_exists("\n".join([*self._assignments, text]), text)
        if ASSIGNMENT.match(text):
            self._assignments.append(text)
        with subprocess.Popen(
            ["bash", "-euc", script],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            if "--watch" in text:
                wait_until(lambda: self._work_until_end_of(process), SECONDS)
            output, _ = process.communicate(timeout=SECONDS)
        return f"exit status {process.returncode}: {output}" if process.returncode else ""

    def _work_until_end_of(self, process: subprocess.Popen[str]) -> bool:
        """Whether the process has ended; compresses, as a dispatcher would, a job that waits."""
        if job := self._to.store.claims.claim():
            self._to.succeed(job)
        return process.poll() is not None

    def _with_what_exists(self, script: str, command: str) -> str:
        """The script with ids and places that exist, in the place of those of the documents."""
        make = self._to.make
        state = next(state for found, state in STATES.items() if re.search(found, command))
        script = script.replace(SERVER, self._to.url)
        script = re.sub(r"/(data|inputs)/(?=models|text)", f"{self._to.inputs}/", script)
        if "job-..." in script:
            script = script.replace("job-...", self._to.job(state))
        if "ds-..." in script:
            query = "format=jsonl&text_field=text"
            dataset = make(f"/v1/datasets?{query}", content=b'{"text": "Hello."}')
            script = script.replace("ds-...", dataset)
        if "whk-..." in script:
            hook = make("/v1/webhooks", json={"url": "https://ci.example.com/eigenpress"})
            script = script.replace("whk-...", hook)
            script = script.replace("msg-...", make(f"/v1/webhooks/{hook}/test"))
        if KEY_ID in script:
            script = script.replace(KEY_ID, make("/v1/keys", json={"scope": "reader"}))
        return script


@pytest.fixture
def installation(
    tmp_path: Path,
    allowed_root: Path,
    model_folder: Path,
    text_folder: Path,
    local_s3: LocalS3,
    without_inspection: None,  # noqa: ARG001
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Installation]:
    """The API on a real bucket, with a Ray that answers."""
    (allowed_root / "models").mkdir()
    model_folder.rename(allowed_root / "models" / "my-llama")
    text_folder.rename(allowed_root / "text")
    monkeypatch.setattr("api.services.RayCluster", OfflineCluster)
    settings = s3_settings_for(
        local_s3,
        tmp_path / "data",
        allowed_roots=(allowed_root,),
        encryption_key=SecretStr(new_key()),
        credentials_key=SecretStr(new_key()),
        require_keys=True,
        admin_key=SecretStr(ADMIN_KEY),
    )
    port = choose_port(0, "test")
    config = uvicorn.Config(create_app(settings), port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    url, headers = f"http://{LOOPBACK}:{port}", {"Authorization": f"Bearer {ADMIN_KEY}"}
    with (
        httpx.Client(base_url=url, headers=headers, trust_env=False) as api,
        closing(Store(settings.database)) as store,
    ):
        yield Installation(api, store, ObjectStorage.from_settings(settings), allowed_root)
    server.should_exit = True
    thread.join()


@pytest.fixture
def reader(tmp_path: Path, installation: Installation) -> Reader:
    return Reader(tmp_path / "home", installation)


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(reader: Reader, page: Path) -> None:
    problems = {
        str(command): problem
        for command in ALL
        if command.page == page and command.runs and (problem := reader.type(command.text))
    }
    assert not problems, "\n\n".join(map("\n".join, problems.items()))


@pytest.mark.parametrize(
    "wrong",
    [
        f"curl {SERVER}/v1/jobs",
        f'curl -H "Authorization: Bearer {ADMIN_KEY}" {SERVER}/v1/jobs?state=waiting',
        "eigenpress show job-... --attempts",
        "eigenpress retry job-...",
        "make no-such-target",
        "no-such-program",
    ],
)
def test_a_wrong_command_is_found(reader: Reader, wrong: str) -> None:
    assert reader.type(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_of_commands_say_so(page: Path) -> None:
    untold = r"^ *```\n *(?:make|curl|eigenpress|docker|kubectl) .*"
    assert not re.findall(untold, page.read_text(), re.MULTILINE)


@pytest.mark.parametrize("pattern", [*NOT_RUN, *ELSEWHERE])
def test_what_does_not_run_is_in_the_documents(pattern: str) -> None:
    assert any(command.matches(pattern) for command in ALL)


@pytest.mark.parametrize(("file", "call"), ELSEWHERE.values())
def test_another_test_runs_the_command(file: str, call: str) -> None:
    assert call in (ROOT / file).read_text()

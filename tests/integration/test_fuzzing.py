"""Mutated inputs are refused in plain words, or compressed into what they are: nothing else.

`make test-fuzz` draws more examples than `make test` does, and others with a FUZZ_SEED. Each goes
through the API, its check included, and if that accepts it, through an attempt with one worker.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from api.app import create_app
from api.services import open_services
from service.errors import Failure, UserError
from service.settings import Settings
from service.standalone.s3_server import LocalS3
from service.storage.s3 import ObjectStorage
from tests.fixtures.gguf_files import write_llama
from tests.fixtures.in_process import LocalInstallation, answer_for_ray, prove_here
from tests.fixtures.mutations import GGUF, WORDS, Mutation, mutations
from workers.actors import worker
from workers.actors.failures import named
from workers.attempt import pipeline

pytestmark = pytest.mark.filterwarnings("ignore")  # libraries warn of what is odd

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))
"""Of all kinds of inputs together."""
SEED = int(os.environ.get("FUZZ_SEED", "0"))
ANSWER_SECONDS = 15
"""Within this time the API accepts or refuses a job."""
EXAMPLE_SECONDS = 30
"""Within this time an example ends; sound ones take less than a second."""
MAX_MESSAGE_CHARACTERS = 700
MAX_ERROR = 0.35
"""The largest relative difference of an artifact's logits from the source's at `KEEP`: three times
that of the sound model. A model with one wrong tensor differs by about 1."""
OF_NUMBERS = ("config", "index", "weights", "gguf")
"""The kinds of inputs that say what a model computes."""
KEEP = 0.999

MUTATIONS = mutations()
_OF_PYTHON = re.compile(
    r"\b[A-Z]\w*(Error|Exception|Warning)\b|Traceback|\bTypeError\b|object at 0x"
)


class Hung(BaseException):
    """An example took longer than `EXAMPLE_SECONDS`."""


class Fuzzed:
    """An installation that takes one mutated input after the other."""

    def __init__(self, installation: LocalInstallation, client: TestClient) -> None:
        self._installation = installation
        self._client = client
        self._sound = installation.inputs
        self._numbers = count()
        write_llama(self._sound / GGUF)
        shutil.rmtree(self._sound / "texts")
        (self._sound / "texts").mkdir()
        for number in range(12):
            (self._sound / "texts" / f"{number}.txt").write_text(f"{number}: {WORDS}")

    def outcome(self, kind: str, changes: Sequence[Mutation]) -> str:
        """What becomes of a job with these inputs, after what it says was judged.

        Raises AssertionError if it is neither refused in plain words nor the model that it was.
        """
        folder = self._sound / f"example-{next(self._numbers)}"
        model = folder / "model"
        try:
            shutil.copytree(self._sound / "llama", model)
            shutil.copytree(self._sound / "texts", folder / "texts")
            shutil.copy(self._sound / GGUF, folder / GGUF)
            for change in changes:
                change.apply({"gguf": folder, "texts": folder / "texts"}.get(kind, model))
            with ending_within(EXAMPLE_SECONDS):
                return self._judged(
                    kind, folder / GGUF if kind == "gguf" else model, folder / "texts"
                )
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _judged(self, kind: str, model: Path, texts: Path) -> str:
        started = time.monotonic()
        answer = self._client.post("/v1/jobs", json=_body(model, texts))
        assert time.monotonic() - started < ANSWER_SECONDS
        if answer.status_code == 422:
            return f"refused at once: {judged_message(answer.json()['detail'])}"
        assert answer.status_code == 201, answer.text
        job_id = answer.json()["id"]
        if message := self._failed(job_id):
            return f"refused by the worker: {judged_message(message)}"
        if kind in OF_NUMBERS:
            assert self._difference(model, job_id) <= MAX_ERROR
        return "compressed"

    def _failed(self, job_id: str) -> str | None:
        """Run the attempt; the message of the user's error that ends it."""
        installation = self._installation
        try:
            installation.attempt(workers=1)
        except BaseException as error:  # Hung, and panics of libraries, too
            failure = named(error)
            store, policy = installation.store, installation.settings.retry_policy
            attempt = store.records.get(job_id).attempt
            store.attempts.fail(job_id, attempt, Failure("failed", failure.detail), policy)
            if not isinstance(failure, UserError):
                raise
            return failure.detail
        return None

    def _difference(self, model: Path, job_id: str) -> float:
        """‖a − m‖ / ‖m‖ of the logits of the artifact a and the source m, as users load them."""
        (artifact,) = self._installation.store.records.artifacts(job_id)
        storage = ObjectStorage.from_settings(self._installation.settings)
        copy = model.parent / "artifact"
        copy.mkdir()
        for file in artifact.files:
            path = copy / file.path
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(storage.get_bytes(f"{artifact.prefix}{file.path}"))
        if model.suffix == ".gguf":
            source = AutoModelForCausalLM.from_pretrained(
                model.parent, gguf_file=model.name, dtype=torch.float32
            )
        else:
            config = AutoConfig.from_pretrained(model)
            config._attn_implementation = "eager"  # some others are compiled first
            config._experts_implementation = None
            source = AutoModelForCausalLM.from_pretrained(model, config=config, dtype=torch.float32)
        ours = AutoModelForCausalLM.from_pretrained(
            copy, trust_remote_code=True, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(copy)
        tokens = torch.tensor([tokenizer(WORDS)["input_ids"][:32]])
        theirs, found = _logits(source, tokens), _logits(ours, tokens)
        return float((found - theirs).norm() / theirs.norm().clamp_min(1e-9))


@torch.inference_mode()
def _logits(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model.eval()(input_ids=tokens, use_cache=False).logits
    return logits.double()


def _body(model: Path, texts: Path) -> dict[str, Any]:
    return {
        "model": {"source": "local", "path": str(model)},
        "calibration": {
            "data": {"source": "local", "path": str(texts)},
            "sequences": 2,
            "sequence_length": 16,
            "batch_size": 2,
        },
        "targets": [{"keep": KEEP}],
        "evaluation": {"enabled": False},
    }


def judged_message(message: str) -> str:
    """The message, which must be one short, printable line without names of Python."""
    assert len(message) <= MAX_MESSAGE_CHARACTERS, message[:2000]
    assert message.isprintable(), repr(message)
    assert not _OF_PYTHON.search(message), message
    return message


@contextmanager
def ending_within(seconds: float) -> Iterator[None]:
    """Raise Hung in the main thread if the block takes longer."""

    def stop(*_: object) -> None:
        raise Hung(f"not done after {seconds} seconds")

    main = threading.main_thread().ident
    assert main is not None
    before = signal.signal(signal.SIGUSR1, stop)
    watchdog = threading.Timer(seconds, signal.pthread_kill, (main, signal.SIGUSR1))
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()
        signal.signal(signal.SIGUSR1, before)


def _once_for_all(patch: pytest.MonkeyPatch) -> None:
    """Have attempts share what takes long to make, and is the same for all."""
    for module in (pipeline, worker):
        patch.setattr(module, "own_versions", cache(module.own_versions))
    connect, storages = ObjectStorage.from_settings, dict[float, ObjectStorage]()

    def shared(settings: Settings, *, patience_seconds: float = 0) -> ObjectStorage:
        if patience_seconds not in storages:
            storages[patience_seconds] = connect(settings, patience_seconds=patience_seconds)
        return storages[patience_seconds]

    patch.setattr(ObjectStorage, "from_settings", shared)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory, local_s3: LocalS3) -> Iterator[Fuzzed]:
    with pytest.MonkeyPatch.context() as patch:
        answer_for_ray(patch)
        prove_here(patch)
        _once_for_all(patch)
        installation = LocalInstallation(tmp_path_factory.mktemp("fuzzing"), local_s3, patch)
        with open_services(installation.settings) as services:
            app = create_app(services.settings, lambda _: nullcontext(services))
            with TestClient(app, raise_server_exceptions=False) as client:
                yield Fuzzed(installation, client)
        installation.store.close()


@pytest.mark.timeout(0)  # every example has its own bound
@pytest.mark.parametrize("kind", MUTATIONS)
def test_a_mutated_input_is_refused_or_compressed_as_it_is(fuzzed: Fuzzed, kind: str) -> None:
    @settings(
        max_examples=EXAMPLES // len(MUTATIONS),
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @seed(SEED)
    @given(st.data())
    def examine(data: st.DataObject) -> None:
        fuzzed.outcome(kind, data.draw(MUTATIONS[kind], label=kind))

    examine()


@pytest.mark.parametrize("kind", ["config", "gguf"])
def test_a_sound_input_is_compressed(fuzzed: Fuzzed, kind: str) -> None:
    assert fuzzed.outcome(kind, ()) == "compressed"

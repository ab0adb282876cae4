"""Artifacts are proven in a process of their own. Each of these processes takes about 4 seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from service.errors import ArtifactMismatch, OutOfMemory, WorkerLost
from tests.fixtures.models import save_tiny_model, tiny_llama_config
from workers.model.loading import load_model
from workers.proof import proof
from workers.proof.clean_process import logits_at
from workers.proof.proof import Claim, Reference, prove
from workers.proof.result import Proof

AMPLE = 1 << 40
SEQUENCES = [[*range(300)], [*range(258), *range(42)]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_llama_config(vocab_size=300, max_position_embeddings=512)
    return save_tiny_model(tmp_path_factory.mktemp("proof") / "model", config)


@pytest.fixture(scope="module")
def claim(source: Path) -> Claim:
    model = load_model(source, torch.device("cpu"))
    return Claim("same", source, Reference.of(SEQUENCES, partial(logits_at, model)))


def proven(claims: Sequence[Claim], source: Path, scratch: Path) -> dict[str, Proof]:
    return prove(claims, source, scratch, dtype=None, carried=(), memory_bytes=AMPLE)


def test_logits_are_compared_at_the_first_last_and_other_positions(claim: Claim) -> None:
    assert claim.reference.tokens.tolist() == [each[:128] for each in SEQUENCES]
    assert claim.reference.positions[[0, -1]].tolist() == [0, 127]
    assert len(set(claim.reference.positions.tolist())) == 32
    assert claim.reference.logits.shape == (2, 32, 300)


def test_the_process_loads_artifacts_and_leaves_nothing(
    claim: Claim, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artifact's modelling file looks for Eigenpress and for secrets, and finds none."""
    folder = shutil.copytree(source, tmp_path / "copy")
    (folder / "modeling.py").write_text(
        "import importlib.util, os, sys\n"
        "from transformers import LlamaForCausalLM\n"
        "assert sys.modules['workers'] is None\n"
        "assert not [name for name in os.environ if name.startswith(('EIGENPRESS_', 'AWS_'))]\n"
        "class Model(LlamaForCausalLM): pass\n"
    )
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("EIGENPRESS_S3_SECRET_ACCESS_KEY", "secret")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    claims = [claim, Claim("other", folder, claim.reference)]
    measured = proven(claims, source, scratch)
    assert [*measured] == ["same", "other"]
    assert measured["other"].logit_error < 1e-6
    assert measured["other"].positions == 64
    assert not [*scratch.iterdir()]


def test_a_difference_is_named(claim: Claim, source: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(source, tmp_path / "copy")
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(ArtifactMismatch) as caught:
        proven([Claim("keep-0.5", folder, claim.reference)], source, tmp_path)
    assert caught.value.detail.startswith(
        "The artifact 'keep-0.5' is not the model that was compressed: its tokenizer differs from "
        "the source's in its special tokens, "
    )
    assert caught.value.detail.endswith(". Nothing was published.")
    assert not caught.value.failure().retryable


def replace_clean_process(patch: pytest.MonkeyPatch, folder: Path, program: str) -> None:
    patch.setattr(proof, "CLEAN_PROCESS", folder / "program.py")
    (folder / "program.py").write_text(program)


def test_a_killed_process_is_a_lost_worker(
    claim: Claim, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_clean_process(monkeypatch, tmp_path, "import os; os.kill(os.getpid(), 9)")
    with pytest.raises(WorkerLost, match="ended by signal 9"):
        proven([claim], source, tmp_path)


def test_a_process_that_hangs_is_ended(
    claim: Claim, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_clean_process(monkeypatch, tmp_path, "import time; time.sleep(600)")
    monkeypatch.setattr(proof, "SECONDS_PER_ARTIFACT", 0.1)
    with pytest.raises(WorkerLost, match=r"longer than 0\.1 s"):
        proven([claim], source, tmp_path)


def test_exhausted_memory_is_no_mismatch(
    claim: Claim, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "run_clean_process", lambda *_: "CUDA out of memory")
    with pytest.raises(OutOfMemory, match="CUDA out of memory"):
        proven([claim], source, tmp_path)


def test_a_defect_of_the_process_is_no_mismatch(
    claim: Claim, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace_clean_process(monkeypatch, tmp_path, "raise SystemExit('no such library')")
    with pytest.raises(RuntimeError, match="no such library"):
        proven([claim], source, tmp_path)

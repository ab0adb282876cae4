"""A single worker: a size measured in memory agrees with its artifact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GPT2Config

from service.domain.spec.job import JobSpec
from service.errors import ModelInvalid
from service.inputs.models.source_card import SourceCard
from service.inputs.opening import HeldFiles
from tests.fixtures.gguf_files import write_llama
from tests.fixtures.models import save_tiny_model
from workers.actors.worker import Worker
from workers.artifact.checkpoint_writer import write_checkpoint
from workers.evaluation.losses import TextLoss
from workers.evaluation.text import text_loss
from workers.model.loading import load_model

GPT2 = GPT2Config(
    vocab_size=258, n_embd=32, n_layer=1, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1
)
CPU = torch.device("cpu")
SEQUENCES = [[number, *range(2, 33)] for number in range(2, 10)]
QUERY = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EIGENPRESS_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EIGENPRESS_ALLOWED_ROOTS", '["/"]')
    return tmp_path / "data"


@pytest.fixture
def worker(tiny_llama: Path, data_dir: Path) -> Any:
    """One that has solved every layer of the tiny Llama, which is stored in float32."""
    worker = worker_of(tiny_llama, data_dir)
    model = worker.load()
    for each in worker.begin_calibration(SEQUENCES, [], loss_known=False).passes:
        worker.calibrate(each)
    for group in model.groups:
        worker.solve(group.name, worker.statistics(group.name))
    return worker


def worker_of(model: Path, data_dir: Path) -> Any:
    spec = JobSpec.model_validate(
        {
            "model": {"source": "local", "path": str(model)},
            "calibration": {
                "data": {"source": "local", "path": str(model)},
                "sequence_length": 32,
            },
            "targets": [{"max_perplexity_increase": 0.1}],
        }
    )
    held = HeldFiles(data_dir / "scratch" / "job-1-1")
    return Worker(spec, "job-1-1", 0, torch.get_num_threads(), held)


def test_a_model_that_is_built_but_cannot_compute_is_refused(
    tiny_llama: Path, tmp_path: Path, data_dir: Path
) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] = {"rope_type": "longrope", "short_factor": [1.0], "long_factor": "x"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelInvalid, match=r"cannot compute as config\.json says: .*'str'"):
        worker_of(folder, data_dir).load()


def test_a_gguf_file_counts_as_it_lies_on_the_disk(tmp_path: Path, data_dir: Path) -> None:
    file = write_llama(tmp_path / "model.gguf", general_name="x" * 4000, general_license="mit")
    summary = worker_of(file, data_dir).load()
    assert (summary.source_format, summary.source_bytes) == ("gguf", file.stat().st_size)
    assert summary.bytes != summary.source_bytes  # of its expansion
    assert summary.card == SourceCard(license="mit")  # no name is so long


def test_a_folder_counts_with_its_weights_alone(
    tiny_llama: Path, data_dir: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "README.md").write_text("---\nbase_model: team/base\n---\n")
    summary = worker_of(folder, data_dir).load()
    assert summary.card == SourceCard(base_model=("team/base",))
    weights = (tiny_llama / "model.safetensors").stat().st_size
    assert (summary.source_format, summary.source_bytes) == ("safetensors", weights)
    assert not summary.unfused
    transposed = save_tiny_model(tmp_path / "gpt2", GPT2)
    assert worker_of(transposed, data_dir).load().unfused


def measured(worker: Any, dtype: str | None, ranks: Mapping[str, int]) -> TextLoss:
    """The loss of the source model with some layers at these ranks."""
    worker.begin_measuring([SEQUENCES], [[]], dtype)
    for number, names in enumerate(worker.blocks):
        replaced = [name for name in names if name in ranks]
        layers = [worker.compressed(name, ranks[name]) for name in replaced]
        worker.measure_block(number, [replaced], *layers)
    ((loss,),) = worker.measured()
    assert isinstance(loss, TextLoss)
    return loss


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_size_in_memory_measures_as_its_artifact_does(
    worker: Any, tiny_llama: Path, tmp_path: Path, dtype: str
) -> None:
    dense = measured(worker, None, {})
    probed = measured(worker, dtype, {QUERY: 4})
    layer = worker.compressed(QUERY, 4)
    artifact = tmp_path / "artifact"
    write_checkpoint(tiny_llama, artifact, {QUERY: 4}, lambda _: [layer], getattr(torch, dtype))
    loaded = text_loss(load_model(artifact, CPU, trust_remote_code=True), SEQUENCES)
    assert probed != dense
    assert probed.perplexity == pytest.approx(loaded.perplexity, rel=1e-6)
    assert measured(worker, None, {}) == dense


def test_a_layer_that_was_probed_is_not_factorised_again(
    worker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed = worker.compressed(QUERY, 4)
    monkeypatch.setattr(
        "workers.actors.worker.interpolate", lambda factors: SimpleNamespace(nbytes=factors.rank)
    )
    assert worker.compressed(QUERY, 4) is probed
    assert worker.compressed(QUERY, 5).nbytes == 5
    worker.release()
    with pytest.raises(KeyError):
        worker.compressed(QUERY, 4)


@pytest.mark.parametrize(
    ("capabilities", "mixed"),
    [({"amx_bf16": True}, True), ({"avx512_bf16": False}, False), ({"bf16": True}, True)],
)
def test_auto_is_mixed_precision_where_the_processor_has_instructions_for_it(
    worker: Any, monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], mixed: bool
) -> None:
    exact = measured(worker, None, {})
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    spec = worker._spec.model_copy(update={"mixed_precision": "auto"})
    auto: Any = Worker(spec, "job-1-1", 0, 1, worker._held)
    auto.load()
    assert (measured(auto, None, {}) != exact) is mixed

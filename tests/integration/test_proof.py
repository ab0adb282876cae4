"""The proof finds wrong artifacts: each test takes out the check that forbids one kind.

Each runs an attempt on a tiny model, in 2 seconds.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.errors import ArtifactMismatch
from service.inputs.models import files, sources
from tests.fixtures.gguf_files import write_llama
from tests.fixtures.in_process import LocalInstallation
from tests.fixtures.models import save_tiny_model, tiny_llama_config, tiny_model
from workers.actors import worker
from workers.artifact import checkpoint_writer
from workers.model import gguf_conversion, tensor_names, weight_files
from workers.model.unused_tensors import UnusedTensors

WEIGHTS = "model.safetensors"


@pytest.fixture
def model(local_installation: LocalInstallation) -> Path:
    """The folder of a sound model."""
    return local_installation.inputs / "llama"


def prove(installation: LocalInstallation, model: Path, **changes: Any) -> dict[str, Any]:
    """The report's proof of a job with one target, which is not evaluated."""
    body = {
        "model": {"source": "local", "path": str(model)},
        "calibration": {
            "data": {"source": "local", "path": str(installation.inputs / "texts")},
            "sequences": 2,
            "sequence_length": 32,
            "batch_size": 1,
        },
        "targets": [{"keep": 0.9}],
        "evaluation": {"enabled": False},
    }
    job = installation.create(**body | changes)
    installation.attempt()
    report = installation.store.records.report(job.id)
    assert report is not None
    proof: dict[str, Any] = report["targets"][0]["proof"]
    return proof


def refused(installation: LocalInstallation, model: Path, **changes: Any) -> str:
    with pytest.raises(ArtifactMismatch) as caught:
        prove(installation, model, **changes)
    return caught.value.detail


def change_weights(model: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(model / WEIGHTS)), model / WEIGHTS, {"format": "pt"})


@pytest.mark.parametrize("mixed_precision", ["bf16", "no"])
def test_a_sound_artifact_is_what_was_in_memory(
    local_installation: LocalInstallation, model: Path, mixed_precision: str
) -> None:
    proof = prove(local_installation, model, mixed_precision=mixed_precision)
    assert proof["logit_error"] < 1e-6
    assert proof["same_predictions"] == 1
    assert proof["positions"] == 64


IN_BYTES = {"bytes_fraction": 0.4, "precisions": "transformers"}


@pytest.mark.parametrize("target", [{"keep": 0.8}, IN_BYTES])
def test_models_that_exceed_the_memory_are_proven_and_decoded_layer_by_layer(
    local_installation: LocalInstallation,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: dict[str, Any],
) -> None:
    monkeypatch.setenv("EIGENPRESS_MODEL_MEMORY_BYTES", "60000")
    monkeypatch.setenv("EIGENPRESS_WORKER_MEMORY_BYTES", "0")
    evaluation = {"sequences": 2, "decode_tokens": 4}
    proof = prove(local_installation, model, evaluation=evaluation, targets=[target])
    assert proof["logit_error"] < 1e-6


def test_the_tensors_of_another_checkpoint(
    local_installation: LocalInstallation, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_model(tiny_llama_config(), seed=1).save_pretrained(model.parent / "other")
    shutil.copy(model.parent / "other" / WEIGHTS, model / "part.safetensors")
    index = {"weight_map": dict.fromkeys(load_file(model / "part.safetensors"), "part.safetensors")}
    (model / files.INDEX_NAME).write_text(json.dumps(index))

    def by_the_index(sizes: dict[str, int], *_: object) -> dict[str, set[str]]:
        return {"part.safetensors" if "part.safetensors" in sizes else WEIGHTS: set()}

    monkeypatch.setattr(files, "checkpoint_files", by_the_index)
    monkeypatch.setattr(weight_files, "checkpoint_files", by_the_index)
    monkeypatch.setattr(sources, "is_wanted", lambda _: True)  # else a worker has only one of them
    assert "transformers reads another model from the source" in refused(local_installation, model)


def test_a_tensor_that_is_dropped_in_silence(
    local_installation: LocalInstallation, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    change_weights(model, lambda tensors: tensors | {name: torch.ones(32)})
    nothing = UnusedTensors({}, {})
    monkeypatch.setattr(tensor_names, "judge_unused", lambda *_: nothing)
    assert f"it lacks the source's tensor '{name}'" in refused(local_installation, model)


def test_a_copy_of_a_tied_weight_with_other_values(
    local_installation: LocalInstallation, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_weights(model, lambda tensors: tensors | {"lm_head.weight": torch.ones(258, 32)})
    monkeypatch.setattr(tensor_names.Source, "check_copies", lambda *_: None)
    assert "it lacks the source's tensor 'lm_head.weight'" in refused(local_installation, model)


def test_random_weights_in_place_of_those_that_a_gguf_file_lacks(
    local_installation: LocalInstallation, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = write_llama(local_installation.inputs / "m.gguf", left_out="blk.0.ffn_up.weight")
    monkeypatch.setattr(gguf_conversion, "_problem", lambda *_: None)
    assert "numbers are not in m.gguf" in refused(local_installation, gguf)


def test_another_tokenizer(
    local_installation: LocalInstallation, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = checkpoint_writer.copy_companions

    def spoilt(source: Path, folder: Path) -> None:
        copy(source, folder)
        (folder / "tokenizer_config.json").unlink()

    monkeypatch.setattr(checkpoint_writer, "copy_companions", spoilt)
    assert "its tokenizer differs from the source's" in refused(local_installation, model)


def test_the_precision_of_a_few_tensors(
    local_installation: LocalInstallation, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_weights(
        model,
        lambda tensors: {
            name: tensor if "layernorm" in name else tensor.bfloat16()
            for name, tensor in tensors.items()
        },
    )
    monkeypatch.setattr(worker, "stored_dtype", lambda _: torch.float32)
    assert "is stored in torch.float32, not in bfloat16" in refused(local_installation, model)


def test_numbers_that_overflow(
    local_installation: LocalInstallation, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change_weights(
        model,
        lambda tensors: tensors | {"model.norm.weight": torch.full((32,), 1e5)},
    )
    monkeypatch.setattr(checkpoint_writer, "_cast", lambda _, tensor, dtype: tensor.to(dtype))
    why = refused(local_installation, model, dtype="float16")
    assert "the tensor 'model.norm.weight' is not finite" in why


def test_no_configuration_of_the_model_itself(
    local_installation: LocalInstallation, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = checkpoint_writer.write_modeling

    def spoilt(folder: Path, *arguments: Any, **named: Any) -> None:
        write(folder, *arguments, **named)
        (folder / "modeling_eigenpress.py").write_text("import missing_module")

    monkeypatch.setattr(checkpoint_writer, "write_modeling", spoilt)
    assert "it does not load" in refused(local_installation, model)


def test_positions_that_are_scaled_otherwise(
    local_installation: LocalInstallation, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_tiny_model(
        local_installation.inputs / "scaled",
        tiny_llama_config(
            rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
        ),
    )
    write = checkpoint_writer.write_json

    def spoilt(path: Path, value: dict[str, Any]) -> None:
        write(path, {name: each for name, each in value.items() if name != "rope_parameters"})

    monkeypatch.setattr(checkpoint_writer, "write_json", spoilt)
    assert "its logits differ by" in refused(local_installation, model)

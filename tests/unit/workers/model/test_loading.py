"""A model is loaded whole or refused; no missing weight is made up."""

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
from transformers import BertConfig, BertModel, ViTConfig, ViTForImageClassification

from service.errors import ModelInvalid, NotACausalLM
from tests.fixtures.models import save_tiny_model, tiny_llama_config, tiny_model
from workers.model.loading import (
    load_model,
    parameter_count,
    stored_dtype,
    stored_dtypes,
)
from workers.model.tensor_names import source_tensors
from workers.model.weight_files import weight_files

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama of the test's own, to damage."""
    return save_tiny_model(tmp_path / "model", tiny_llama_config())


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a checkpoint."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def configure(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_model_is_loaded_as_it_was_saved_and_for_inference(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, CPU)
    original = tiny_model(tiny_llama_config())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    for name, value in original.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "model.layers.1.mlp.down_proj.weight",
            r"1 weights .* model\.layers\.1\.mlp\.down_proj",
        ),
        (
            "model.layers.0.input_layernorm.weight",
            r"1 weights .* model\.layers\.0\.input_",
        ),
        ("model.embed_tokens.weight", r"2 weights .* such as lm_head\.weight"),  # tied to it
    ],
)
def test_a_missing_weight_is_refused_by_name(folder: Path, name: str, message: str) -> None:
    rewrite(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(ModelInvalid, match=message) as caught:
        load_model(folder, CPU)
    assert caught.value.param == "model"


def test_a_missing_output_head_is_refused_unless_it_is_tied(folder: Path) -> None:
    load_model(folder, CPU)
    configure(folder, tie_word_embeddings=False)
    with pytest.raises(ModelInvalid, match=r"lm_head\.weight"):
        load_model(folder, CPU)


def test_a_weight_of_the_wrong_shape_is_refused(folder: Path) -> None:
    def cut(tensors: dict[str, Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"][:5].clone()

    rewrite(folder, cut)
    with pytest.raises(ModelInvalid):
        load_model(folder, CPU)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(folder: Path, number: float) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    rewrite(folder, lambda tensors: tensors[name][3].fill_(number))
    with pytest.raises(ModelInvalid, match=f"the tensor '{name}' is not finite"):
        load_model(folder, CPU)


def test_a_configuration_of_another_depth_is_refused(folder: Path) -> None:
    configure(folder, num_hidden_layers=3, layer_types=None)
    with pytest.raises(ModelInvalid, match="9 weights are missing"):
        load_model(folder, CPU)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": "2"},
        {"num_attention_heads": 3},
        {"layer_types": ["full_attention"] * 5},
        {"hidden_act": "banana"},
        {"rope_parameters": {"rope_type": "banana", "factor": 2.0}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_configuration_that_makes_no_model_is_refused(
    folder: Path, fields: dict[str, Any]
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | fields))
    for read in (lambda: load_model(folder, CPU), lambda: source_tensors(folder)):
        with pytest.raises(ModelInvalid) as caught:
            read()
        assert caught.value.param == "model"
        assert "\n" not in caught.value.detail


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x10\0\0\0\0\0\0\0{}"])
def test_weights_that_cannot_be_read_are_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelInvalid, match="cannot be loaded"):
        load_model(folder, CPU)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelInvalid):
        load_model(folder, CPU)


def test_an_unknown_architecture_is_refused(folder: Path) -> None:
    configure(folder, model_type="llama-of-tomorrow")
    with pytest.raises(ModelInvalid):
        load_model(folder, CPU)


def test_code_that_comes_with_a_model_is_not_run(folder: Path) -> None:
    mark = folder / "mark"
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    configure(folder, model_type="evil", auto_map=auto_map)
    with pytest.raises(ModelInvalid, match=r"loaded: it needs Python code .* never run"):
        load_model(folder, CPU)
    assert not mark.exists()


def test_a_model_of_pictures_is_no_language_model(tmp_path: Path) -> None:
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=8,
        patch_size=4,
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    with pytest.raises(NotACausalLM) as caught:
        load_model(tmp_path, CPU)
    assert caught.value.param == "model"


def test_an_encoder_is_not_given_a_random_head(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ModelInvalid, match="weights are missing"):
        load_model(tmp_path, CPU)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_cpu_computes_in_float32_whatever_is_stored(tmp_path: Path, dtype: torch.dtype) -> None:
    tiny_model(tiny_llama_config()).to(dtype).save_pretrained(tmp_path)
    assert stored_dtype(tmp_path) is dtype
    assert load_model(tmp_path, CPU).dtype is torch.float32


def test_the_precision_of_a_checkpoint_is_that_of_most_of_its_bytes(tmp_path: Path) -> None:
    tensors = {
        "a.embedding": torch.zeros(4, 8),  # the first matrix
        "b": torch.zeros(8, 8, dtype=torch.bfloat16),
        "c": torch.zeros(8, 8, dtype=torch.bfloat16),
        "mask": torch.ones(64, 64, dtype=torch.bool),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    assert stored_dtypes(tmp_path) == {torch.float32: 128, torch.bfloat16: 256}
    assert stored_dtype(tmp_path) is torch.bfloat16


def test_a_checkpoint_without_weights_has_no_precision(tmp_path: Path) -> None:
    save_file({"mask": torch.ones(3, dtype=torch.bool)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelInvalid, match="no weights in F32, BF16, F16"):
        stored_dtype(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_parameters_count_once(tied: bool) -> None:
    model = tiny_model(tiny_llama_config(tie_word_embeddings=tied))
    embedding, rest = 258 * 32, 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 80 + 2 * 32) + 32
    assert parameter_count(model) == rest + embedding * (1 if tied else 2)


def test_the_files_of_a_checkpoint_are_those_its_index_names(tmp_path: Path) -> None:
    model = tiny_model(tiny_llama_config())
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    (tmp_path / "consolidated.safetensors").write_bytes(b"another copy of the weights")
    files = weight_files(tmp_path)
    assert len(files) > 2
    assert files == sorted(tmp_path.glob("model-*.safetensors"))
    names = [name for file in files for name in load_file(file)]
    assert sorted(names) == sorted(set(model.state_dict()) - {"lm_head.weight"})
    assert parameter_count(load_model(tmp_path, CPU)) == parameter_count(model)


def test_a_checkpoint_without_an_index_is_the_file_that_transformers_loads(
    tiny_llama: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_llama, model)
    (model / "zz-adapter.safetensors").write_bytes(b"not of the model")
    assert weight_files(model) == [model / "model.safetensors"]

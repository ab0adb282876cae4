"""What the clean process finds in a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.fixtures.models import byte_tokenizer, save_tiny_model, tiny_llama_config, tiny_model
from workers.artifact.checkpoint_writer import write_checkpoint
from workers.compression.candidates import Width
from workers.compression.rounding.embeddings import rounded_rows
from workers.compression.rounding.grid import RoundedWeight, best_scales, nearest
from workers.model.blocks import vocabulary
from workers.model.loading import load_model
from workers.proof.clean_process import _bytes, findings, logits_at, source_differences

WEIGHTS = "model.safetensors"
AMPLE = 1 << 40
TOKENS = torch.arange(40).reshape(2, 20)
POSITIONS = torch.tensor([0, 7, 19])


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model with its reference beside it."""
    folder = tmp_path_factory.mktemp("proof") / "model"
    model = tiny_model(tiny_llama_config(tie_word_embeddings=False))
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer(adds_bos=True)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(folder)
    logits = logits_at(model, TOKENS, POSITIONS)
    reference = {"tokens": TOKENS, "positions": POSITIONS, "logits": logits}
    save_file(reference, folder.parent / "reference.safetensors")
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return shutil.copytree(sound, tmp_path / "copy")


def found(folder: Path, sound: Path, dtype: str | None = None, *carried: str) -> dict[str, Any]:
    return findings(folder, sound, sound.parent / "reference.safetensors", dtype, carried, AMPLE)


def test_a_copy_is_sound(folder: Path, sound: Path) -> None:
    measured = found(folder, sound)
    assert measured.pop("logit_error") < 1e-6
    assert measured == {"differences": [], "same_predictions": 1.0, "positions": 6}


def change_weights(folder: Path, **changes: Any) -> None:
    tensors = load_file(folder / WEIGHTS)
    for name, change in changes.items():
        key = name.replace("__", ".")
        tensors[key] = change(tensors.get(key))
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def drop_the_configuration(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()


def drop_the_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def merge_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"]["th"] = 400
    path.write_text(json.dumps(tokenizer))


def put_nothing_before_a_text(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))


def refer_to_code(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    reference = {"auto_map": {"AutoTokenizer": [None, "code.Own"]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | reference))


@pytest.mark.parametrize(
    ("spoil", "difference"),
    [
        (drop_the_configuration, "its special tokens, the ids of its special tokens"),
        (drop_the_template, "its chat template"),
        (merge_tokens, "its vocabulary"),
        (put_nothing_before_a_text, "the ids of a text"),
        (refer_to_code, "its reference to Python code"),
    ],
)
def test_another_tokenizer(
    folder: Path, sound: Path, spoil: Callable[[Path], None], difference: str
) -> None:
    spoil(folder)
    (found_difference,) = found(folder, sound)["differences"]
    assert found_difference.startswith(f"its tokenizer differs from the source's in {difference}")


def test_a_reference_to_code_that_is_left_out(folder: Path, sound: Path, tmp_path: Path) -> None:
    source = shutil.copytree(sound, tmp_path / "source")
    refer_to_code(source)
    reference = sound.parent / "reference.safetensors"
    assert findings(folder, source, reference, None, (), AMPLE)["differences"] == []


def test_tokenizers_that_fail_on_the_same_texts(folder: Path, sound: Path, tmp_path: Path) -> None:
    file = folder / "tokenizer.json"
    model = {"type": "WordLevel", "vocab": {"<s>": 0, "</s>": 1}, "unk_token": "?"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model": model}))
    source = shutil.copytree(folder, tmp_path / "source")
    reference = sound.parent / "reference.safetensors"
    assert findings(folder, source, reference, None, (), AMPLE)["differences"] == []


def test_a_tokenizer_that_does_not_load(folder: Path, sound: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    (difference,) = found(folder, sound)["differences"]
    assert difference.startswith("its tokenizer does not load: ")


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
def test_another_tensor(folder: Path, sound: Path, name: str) -> None:
    change_weights(folder, **{name: lambda tensor: tensor * 1.1})
    (difference,) = found(folder, sound)["differences"]
    assert difference.startswith("its logits differ by ")


def test_rounding_is_no_difference(folder: Path, sound: Path) -> None:
    change_weights(folder, **{"lm_head.weight": lambda tensor: tensor * (1 + 1e-6)})
    assert found(folder, sound)["differences"] == []


def test_logits_that_are_all_zero_are_the_same(folder: Path, tmp_path: Path) -> None:
    change_weights(folder, **{"model.norm.weight": torch.zeros_like})
    zeros = {"tokens": TOKENS, "positions": POSITIONS, "logits": torch.zeros(2, 3, 258)}
    save_file(zeros, tmp_path / "reference.safetensors")
    measured = findings(folder, folder, tmp_path / "reference.safetensors", None, (), AMPLE)
    assert (measured["differences"], measured["logit_error"]) == ([], 0)


def test_numbers_that_are_not_finite(folder: Path, sound: Path) -> None:
    change_weights(folder, **{"model.norm.weight": lambda tensor: tensor / 0})
    assert found(folder, sound)["differences"] == [
        "the tensor 'model.norm.weight' is not finite",
        "its logits are not finite",
    ]


def test_another_precision(folder: Path, sound: Path) -> None:
    change_weights(folder, **{"model.norm.weight": lambda tensor: tensor.half()})
    message = "the tensor 'model.norm.weight' is stored in torch.float16, not in float32"
    assert message in found(folder, sound)["differences"]
    differences = found(folder, sound, "float16")["differences"]
    assert len(differences) == len(load_file(folder / WEIGHTS)) - 1


def test_a_missing_and_an_additional_tensor(folder: Path, sound: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["model.norm.weight"]
    more = {"mtp.weight": torch.zeros(3), "other": torch.zeros(3)}
    save_file(tensors | more, folder / WEIGHTS, {"format": "pt"})
    missing, unexpected, *_ = found(folder, sound, None, "mtp.weight")["differences"]
    assert missing == "1 missing keys, such as model.norm.weight"
    assert unexpected == "1 unexpected keys, such as other"


def test_a_model_that_does_not_load(folder: Path, sound: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama", "num_attention_heads": 5}')
    measured = found(folder, sound)
    assert measured.keys() == {"differences"}
    assert measured["differences"][-1].startswith("it does not load: ")


def test_a_model_that_exceeds_the_memory_is_read_layer_by_layer(folder: Path, sound: Path) -> None:
    reference = sound.parent / "reference.safetensors"
    measured = findings(folder, sound, reference, None, (), 100_000)
    assert measured["differences"] == []
    assert measured["logit_error"] < 1e-6
    change_weights(folder, model__layers__1__mlp__up_proj__weight=lambda tensor: tensor * 0.5)
    (difference,) = findings(folder, sound, reference, None, (), 100_000)["differences"]
    assert "its logits differ by" in difference


def test_a_source_that_transformers_reads_otherwise(folder: Path, sound: Path) -> None:
    reference = sound.parent / "reference.safetensors"
    assert source_differences(folder, reference, AMPLE) == []
    change_weights(folder, model__norm__weight=lambda tensor: tensor * torch.arange(32))
    (difference,) = source_differences(folder, reference, AMPLE)
    assert "its logits differ by" in difference


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [None, 4])
def test_integers_take_their_own_bytes_and_then_those_of_weights(
    tmp_path: Path, dtype: torch.dtype, width: int | None
) -> None:
    config = tiny_llama_config(tie_word_embeddings=False)
    source, model = save_tiny_model(tmp_path / "source", config), tiny_model(config)
    matrices, names = vocabulary(source), ["q_proj", "k_proj", "o_proj"]
    forms = {f"model.layers.0.self_attn.{n}": Width(3 + i) for i, n in enumerate(names)}
    forms |= {matrix.name: Width(8) for matrix in matrices}

    def rounded(name: str) -> RoundedWeight:
        weight = model.get_submodule(name).weight.detach()
        if "proj" not in name:
            return rounded_rows(weight, dtype)
        scales = best_scales(weight, torch.ones(weight.shape[1]), forms[name], dtype)
        return nearest(weight, scales, forms[name])

    write_checkpoint(source, tmp_path / "made", forms, partial(map, rounded), dtype, matrices)
    made = AutoModelForCausalLM.from_pretrained(
        tmp_path / "made", dtype="auto" if width is None else torch.float32
    )
    before = sum(each.nbytes for each in made.state_dict().values())
    made(TOKENS)
    after = sum(each.nbytes for each in made.state_dict().values())
    shapes = 16 * len(names)  # the integers that no weight becomes
    assert _bytes(tmp_path / "made", width) == (before, after - shapes)


def test_a_configuration_may_say_that_nothing_is_rounded(folder: Path, sound: Path) -> None:
    """As some on the hub do."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": None}))
    assert found(folder, sound)["differences"] == []
    load_model(folder, torch.device("cpu"), memory_bytes=AMPLE)

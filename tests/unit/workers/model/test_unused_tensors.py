"""Every tensor of a checkpoint is used, carried over, named as left out, or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GPT2Config, GPTNeoXConfig, PretrainedConfig

from service.errors import ModelInvalid
from tests.fixtures.models import save_tiny_model, tiny_llama_config
from workers.artifact.checkpoint_writer import check_writable
from workers.model.loading import load_model
from workers.model.tensor_names import source_tensors
from workers.model.unused_tensors import COMPUTED, FOREIGN, MULTI_TOKEN, SKIPPED

SMALL: dict[str, Any] = {"vocab_size": 258, "num_hidden_layers": 2, "num_attention_heads": 4}


def checkpoint(folder: Path, config: PretrainedConfig, **added: Tensor) -> Path:
    """A sound checkpoint to which tensors were added."""
    save_tiny_model(folder, config)
    return change(folder, lambda tensors: tensors | added)


def change(folder: Path, changed: Any) -> Path:
    file = folder / "model.safetensors"
    save_file(changed(load_file(file)), file, metadata={"format": "pt"})
    return folder


def configure(folder: Path, **fields: Any) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))
    return folder


def another_layer(folder: Path) -> Path:
    """Give the checkpoint one layer more than its configuration has."""
    return change(
        folder,
        lambda tensors: (
            tensors
            | {
                name.replace("layers.1.", "layers.2."): torch.rand_like(tensor)
                for name, tensor in tensors.items()
                if "layers.1." in name
            }
        ),
    )


def test_a_sound_checkpoint_has_no_unused_tensors(tmp_path: Path) -> None:
    unused = source_tensors(checkpoint(tmp_path / "model", tiny_llama_config())).unused
    assert not unused.carried
    assert not unused.left_out


@pytest.mark.parametrize(
    ("config", "name", "shape", "reason"),
    [
        (tiny_llama_config(), "model.layers.0.self_attn.rotary_emb.inv_freq", (4,), SKIPPED),
        (tiny_llama_config(), "v_head.summary.weight", (1, 32), FOREIGN),
        (
            GPTNeoXConfig(**SMALL, hidden_size=32, intermediate_size=80),
            "gpt_neox.layers.0.attention.masked_bias",
            (),
            COMPUTED,
        ),
        (GPT2Config(vocab_size=258, n_embd=32, n_layer=2, n_head=4), "h.1.attn.bias", (8, 8), None),
    ],
    ids=["table", "value head", "mask", "bare mask"],
)
def test_a_tensor_that_changes_nothing_is_left_out_and_named(
    tmp_path: Path, config: PretrainedConfig, name: str, shape: tuple[int, ...], reason: str | None
) -> None:
    folder = checkpoint(tmp_path / "model", config, **{name: torch.ones(shape)})
    unused = source_tensors(folder).unused
    assert not unused.carried
    assert list(unused.left_out) == [name]
    assert unused.left_out[name] == reason or reason is None


def test_layers_for_further_tokens_are_carried_over(tmp_path: Path) -> None:
    folder = checkpoint(
        tmp_path / "model", tiny_llama_config(), **{"mtp.fc.weight": torch.rand(4, 8)}
    )
    configure(another_layer(folder), num_nextn_predict_layers=1)
    source = source_tensors(folder)
    stored = load_file(folder / "model.safetensors")
    extra = {name for name in stored if name.startswith(("mtp.", "model.layers.2."))}
    assert dict(source.unused.carried) == dict.fromkeys(extra, MULTI_TOKEN)
    assert len(extra) > 5
    carried = dict(source.carried())
    assert carried.keys() == extra
    assert all(torch.equal(tensor, stored[name]) for name, tensor in carried.items())


@pytest.mark.parametrize(
    "added",
    [
        {"model.layers.0.self_attn.q_proj.bias": torch.ones(32)},
        {"model.layers.1.self_attn.q_proj.weight_scale_inv": torch.ones(1, 1)},
        {"model.layers.1.mlp.another_norm.weight": torch.ones(32)},
        {"model.norm.bias": torch.ones(32)},
        {"model.embed_positions.weight": torch.ones(8, 32)},
        {"lm_head.bias": torch.ones(258)},
        {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 32)},
        {"base_model.model.model.layers.0.mlp.up_proj.lora_B.weight": torch.ones(80, 4)},
    ],
    ids=lambda added: next(iter(added)),
)
def test_a_tensor_that_changes_what_the_model_computes_is_refused(
    tmp_path: Path, added: Mapping[str, Tensor]
) -> None:
    folder = checkpoint(tmp_path / "model", tiny_llama_config(), **added)
    (name,) = added
    with pytest.raises(ModelInvalid, match=f"holds '{name}'") as caught:
        source_tensors(folder)
    assert caught.value.param == "model"


def test_a_layer_beyond_those_of_the_configuration_is_refused(tmp_path: Path) -> None:
    folder = another_layer(checkpoint(tmp_path / "model", tiny_llama_config()))
    with pytest.raises(ModelInvalid, match=r"layers\.2\..* num_hidden_layers in config.json is 2"):
        source_tensors(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "language_model."])
def test_a_prefix_of_every_name_is_refused_with_what_to_do(tmp_path: Path, prefix: str) -> None:
    folder = checkpoint(tmp_path / "model", tiny_llama_config())
    change(folder, lambda tensors: {f"{prefix}{name}": each for name, each in tensors.items()})
    with pytest.raises(ModelInvalid, match=f"remove '{prefix}' from the names"):
        source_tensors(folder)


def test_a_head_that_is_tied_but_differs_is_refused(tmp_path: Path) -> None:
    config = tiny_llama_config(tie_word_embeddings=True)
    folder = checkpoint(tmp_path / "model", config, **{"lm_head.weight": torch.rand(258, 32)})
    with pytest.raises(ModelInvalid, match=r"ties 'lm_head.weight' to 'model.embed_tokens.weight'"):
        check_writable(folder)


def test_a_tied_weight_may_be_stored_under_the_other_name(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model", tiny_llama_config(tie_word_embeddings=True))
    expected = load_file(folder / "model.safetensors")
    embedding = "model.embed_tokens.weight"

    def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {("lm_head.weight" if key == embedding else key): t for key, t in tensors.items()}

    source = source_tensors(change(folder, renamed))
    read = {name: tensor for piece in source for name, tensor in piece.read().items()}
    assert read.keys() == expected.keys()
    assert torch.equal(read[embedding], expected[embedding])
    loaded = load_model(folder, torch.device("cpu"))
    assert torch.equal(loaded.model.embed_tokens.weight, expected[embedding])

"""The streamed folder equals the model in memory, and loads with only transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    PretrainedConfig,
    Qwen2Config,
)

from bench.assembly import measure
from service.domain.spec.job import JobSpec
from service.errors import ModelInvalid, TargetUnreachable
from tests.fixtures.models import (
    ARCHITECTURES,
    byte_tokenizer,
    save_tiny_model,
    tiny_llama_config,
    tiny_model,
)
from workers.artifact import checkpoint_writer
from workers.artifact.checkpoint_writer import (
    check_roundable,
    check_writable,
    write_checkpoint,
)
from workers.artifact.size import CheckpointSize
from workers.compression.checkpoint import replace_layers
from workers.compression.interpolation import Interpolation, interpolate
from workers.compression.layers import compressible_layers
from workers.compression.solve import Factors
from workers.model.loading import parameter_count
from workers.model.weight_files import weight_files

RANK = 5
TOKENS = torch.tensor([[3, 14, 15, 92, 65, 35, 89, 79], [2, 71, 82, 81, 82, 84, 59, 4]])

LOAD_ELSEWHERE = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("service", "workers", "api", "ray"):
            raise ImportError(name)

sys.meta_path.insert(0, Refuse())
folder, tokens = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder)  # a question would end up in the output
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
with torch.no_grad():
    logits = model(input_ids=torch.tensor(tokens)).logits
generated = model.generate(torch.tensor(tokens[:1]), max_new_tokens=4, do_sample=False)
print(json.dumps({
    "logits": logits.tolist(),
    "generated": generated.tolist(),
    "tokenized": tokenizer("to calibrate")["input_ids"],
    "ours": [name for name in sys.modules if name.partition(".")[0] in ("workers", "ray")],
}))
"""

SMALL: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

CONFIGS: dict[str, PretrainedConfig] = {
    "llama, tied": tiny_llama_config(),
    "llama, untied": tiny_llama_config(tie_word_embeddings=False),
    "llama with biases": tiny_llama_config(attention_bias=True, mlp_bias=True),
    "qwen2": Qwen2Config(**SMALL, num_key_value_heads=2),
    "opt": OPTConfig(
        vocab_size=258,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
    ),
    "gpt-neox": GPTNeoXConfig(**SMALL),
}


@dataclass(frozen=True)
class Case:
    """A source checkpoint, low-rank stand-ins for some layers, and what should come of them."""

    source: Path
    layers: Mapping[str, Interpolation]
    expected: Any  # the compressed model, in memory

    @property
    def ranks(self) -> dict[str, int]:
        return {name: layer.rank for name, layer in self.layers.items()}

    def write(self, folder: Path, dtype: torch.dtype = torch.float32) -> CheckpointSize:
        return write_checkpoint(
            self.source, folder, self.ranks, partial(map, self.layers.__getitem__), dtype
        )


def random_layers(model: Any, *, adds_bias: bool) -> dict[str, Interpolation]:
    """Stand-ins for all compressible layers but the first, which stays dense."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / 4

    return {
        layer.name: interpolate(
            Factors(
                random(RANK, layer.in_features),
                random(layer.out_features, RANK),
                random(layer.out_features) if adds_bias or layer.has_bias else None,
            )
        )
        for layer in compressible_layers(model)[1:]
    }


def stored_numbers(model: Any) -> int:
    """The model's parameters and what the low-rank layers need to order their outputs."""
    orders = (buffer for name, buffer in model.named_buffers() if name.endswith(".order"))
    return parameter_count(model) + sum(int(order.numel()) for order in orders)


def make_case(folder: Path, config: PretrainedConfig, *, adds_bias: bool = False) -> Case:
    save_tiny_model(folder, config)
    model = tiny_model(config)
    layers = random_layers(model, adds_bias=adds_bias)
    return Case(folder, layers, replace_layers(model, layers))


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return make_case(tmp_path / "source", tiny_llama_config())


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    result: Tensor = model(input_ids=TOKENS).logits
    return result


def same(one: Any, other: Any) -> bool:
    return torch.allclose(logits(one), logits(other), atol=1e-5)


@pytest.mark.parametrize("adds_bias", [False, True], ids=["as it is", "with bias"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_what_is_loaded_is_what_was_in_memory(
    tmp_path: Path, config: PretrainedConfig, adds_bias: bool
) -> None:
    case = make_case(tmp_path / "source", config, adds_bias=adds_bias)
    size = case.write(tmp_path / "artifact")
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "artifact", trust_remote_code=True, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert same(loaded, case.expected)
    assert not same(loaded, tiny_model(config))
    assert size.parameters == stored_numbers(loaded) == stored_numbers(case.expected)
    assert size.bytes == (tmp_path / "artifact" / "model.safetensors").stat().st_size


def test_it_loads_and_generates_where_nothing_of_ours_is(
    case: Case, tmp_path: Path, modules_cache: Path
) -> None:
    case.write(tmp_path / "artifact")
    elsewhere = subprocess.run(
        [sys.executable, "-I", "-c", LOAD_ELSEWHERE, tmp_path / "artifact", str(TOKENS.tolist())],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(modules_cache / "elsewhere")},
    )
    assert elsewhere.returncode == 0, elsewhere.stderr
    result = json.loads(elsewhere.stdout)
    assert torch.allclose(torch.tensor(result["logits"]), logits(case.expected), atol=1e-5)
    expected = case.expected.generate(TOKENS[:1], max_new_tokens=4, do_sample=False)
    assert result["generated"] == expected.tolist()
    assert result["tokenized"] == byte_tokenizer(adds_bos=False)("to calibrate")["input_ids"]
    assert result["ours"] == []


def test_without_trust_it_is_refused_and_never_loaded_with_random_weights(
    case: Case, tmp_path: Path
) -> None:
    case.write(tmp_path / "artifact")
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "artifact", trust_remote_code=False)
    with pytest.raises(ValueError, match="trust_remote_code"):
        LlamaForCausalLM.from_pretrained(tmp_path / "artifact")
    (tmp_path / "artifact" / "modeling_eigenpress.py").unlink()
    with pytest.raises(OSError, match="modeling_eigenpress"):
        load(tmp_path / "artifact")


def test_it_can_be_saved_and_loaded_again(case: Case, tmp_path: Path) -> None:
    case.write(tmp_path / "artifact")
    load(tmp_path / "artifact").save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert same(again, case.expected)
    assert again.config.eigenpress["layers"].keys() == case.layers.keys()
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=False)


def test_the_tokenizer_comes_along(case: Case, tmp_path: Path) -> None:
    (case.source / "LICENSE").write_text("the licence")
    (case.source / "pytorch_model.bin").write_bytes(b"pickled")
    (case.source / "modeling_custom.py").write_text("raise SystemExit")
    (case.source / "trainer_state.json").write_text("{}")
    (case.source / "requirements.txt").write_text("somebody's list")
    case.write(tmp_path / "artifact")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "artifact")
    text = "to calibrate"
    assert tokenizer(text)["input_ids"] == byte_tokenizer(adds_bos=False)(text)["input_ids"]
    assert sorted(path.name for path in (tmp_path / "artifact").iterdir()) == [
        "LICENSE",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_eigenpress.py",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_tokenizer_keeps_its_templates_and_its_settings(case: Case, tmp_path: Path) -> None:
    saved = byte_tokenizer(adds_bos=True)
    saved.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    saved.model_max_length = 64
    saved.add_special_tokens({"pad_token": "<pad>"})
    saved.save_pretrained(case.source)
    case.write(tmp_path / "artifact")
    source = AutoTokenizer.from_pretrained(case.source)
    written = AutoTokenizer.from_pretrained(tmp_path / "artifact")
    assert written.chat_template == source.chat_template == saved.chat_template
    assert written.special_tokens_map == source.special_tokens_map
    assert (written.pad_token, written.model_max_length) == ("<pad>", 64)
    assert written("to calibrate")["input_ids"] == source("to calibrate")["input_ids"]


def test_a_reference_to_code_of_the_source_is_not_copied(case: Case, tmp_path: Path) -> None:
    path = case.source / "tokenizer_config.json"
    code = {"auto_map": {"AutoTokenizer": ["somebody/else--code.Tokenizer", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | code))
    case.write(tmp_path / "artifact")
    written = json.loads((tmp_path / "artifact" / "tokenizer_config.json").read_text())
    assert written | code == json.loads(path.read_text())
    assert "auto_map" not in written
    assert AutoTokenizer.from_pretrained(tmp_path / "artifact", trust_remote_code=True)("a")


@pytest.mark.parametrize("bound", [1, 20_000])
def test_a_large_checkpoint_is_cut_into_shards(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: int
) -> None:
    case.write(tmp_path / "whole")
    monkeypatch.setattr(checkpoint_writer, "MAX_SHARD_BYTES", bound)
    size = case.write(tmp_path / "artifact")
    files = weight_files(tmp_path / "artifact")
    assert files == sorted((tmp_path / "artifact").glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    for file in files:
        shard = load_file(file)
        assert len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= bound
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert len(files) == len(whole) if bound == 1 else 2 < len(files) < len(whole)
    index = json.loads((tmp_path / "artifact" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == whole.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    assert size.bytes == sum(file.stat().st_size for file in files)
    assert same(load(tmp_path / "artifact"), case.expected)


def test_a_source_in_shards_is_read_whole_and_its_index_left_behind(tmp_path: Path) -> None:
    case = make_case(tmp_path / "source", tiny_llama_config())
    (tmp_path / "source" / "model.safetensors").unlink()
    tiny_model(tiny_llama_config()).save_pretrained(tmp_path / "source", max_shard_size="40KB")
    assert len(weight_files(tmp_path / "source")) > 2
    case.write(tmp_path / "artifact")
    assert not (tmp_path / "artifact" / "model.safetensors.index.json").exists()
    assert same(load(tmp_path / "artifact"), case.expected)


def test_the_same_input_gives_the_same_bytes(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint_writer, "MAX_SHARD_BYTES", 20_000)
    case.write(tmp_path / "one")
    case.write(tmp_path / "two")
    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert one == two


def test_memory_is_bounded_by_a_few_tensors(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=12,
        num_attention_heads=8,
        dtype="bfloat16",
    )
    peak_bytes = measure(tmp_path, config).peak_bytes
    (file,) = weight_files(tmp_path / "artifact")
    assert file.stat().st_size > 60 << 20
    assert peak_bytes < 30 << 20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_artifact_is_written_in_the_precision_asked_for(
    case: Case, tmp_path: Path, dtype: torch.dtype
) -> None:
    size = case.write(tmp_path / "artifact", dtype)
    tensors = load_file(tmp_path / "artifact" / "model.safetensors")
    stored = {name.rpartition(".")[2]: tensor.dtype for name, tensor in tensors.items()}
    assert stored == {"weight": dtype, "order": torch.int32}
    loaded = load(tmp_path / "artifact")
    assert loaded.dtype is dtype
    assert torch.equal(
        loaded.model.layers[1].mlp.up_proj.basis.weight,
        case.layers["model.layers.1.mlp.up_proj"].basis.to(dtype),
    )
    assert size.parameters == stored_numbers(case.expected)


def test_the_configuration_says_what_was_made_of_what(case: Case, tmp_path: Path) -> None:
    config = json.loads((case.source / "config.json").read_text())
    (case.source / "config.json").write_text(json.dumps(config | {"torch_dtype": "float64"}))
    case.write(tmp_path / "artifact", torch.bfloat16)
    written = json.loads((tmp_path / "artifact" / "config.json").read_text())
    assert written["eigenpress"] == {
        "format": 1,
        "base_architecture": "LlamaForCausalLM",
        "base_model_type": "llama",
        "layers": {name: {"rank": RANK, "bias": False} for name in case.layers},
    }
    assert (written["dtype"], "torch_dtype" in written) == ("bfloat16", False)
    assert written["model_type"] == "llama"


def test_with_nothing_to_replace_the_model_is_written_as_it_is(case: Case, tmp_path: Path) -> None:
    untouched = Case(case.source, {}, tiny_model(tiny_llama_config()))
    size = untouched.write(tmp_path / "artifact")
    assert size.parameters == stored_numbers(untouched.expected)
    assert same(load(tmp_path / "artifact"), untouched.expected)


def test_a_checkpoint_of_the_bare_base_model_is_given_its_prefix(tmp_path: Path) -> None:
    config = tiny_llama_config()
    case = make_case(tmp_path / "source", config)
    tiny_model(config).model.save_pretrained(tmp_path / "source")
    names = load_file(tmp_path / "source" / "model.safetensors")
    assert not any(name.startswith("model.") for name in names)
    case.write(tmp_path / "artifact")
    assert same(load(tmp_path / "artifact"), case.expected)


def test_names_that_do_not_match_the_model_are_refused(case: Case, tmp_path: Path) -> None:
    file = case.source / "model.safetensors"
    renamed = {f"transformer.{name}": tensor for name, tensor in load_file(file).items()}
    save_file(renamed, file, metadata={"format": "pt"})
    for refuse in (lambda: check_writable(case.source), lambda: case.write(tmp_path / "artifact")):
        with pytest.raises(ModelInvalid, match=r"has no model\.") as caught:
            refuse()
        assert caught.value.param == "model"
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize("says_so", [True, False], ids=["said", "the architecture's default"])
def test_an_output_head_that_is_tied_and_stored_all_the_same_is_dropped(
    tmp_path: Path, says_so: bool
) -> None:
    case = make_case(tmp_path / "source", GemmaConfig(**SMALL, num_key_value_heads=2, head_dim=8))
    file = case.source / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    if not says_so:  # as older releases of transformers wrote it
        config = json.loads((case.source / "config.json").read_text())
        del config["tie_word_embeddings"]
        (case.source / "config.json").write_text(json.dumps(config))
    size = case.write(tmp_path / "artifact")
    assert size.parameters == stored_numbers(case.expected)
    assert same(load(tmp_path / "artifact"), case.expected)


def test_masks_that_old_checkpoints_keep_are_no_parameters(tmp_path: Path) -> None:
    case = make_case(tmp_path / "source", GPTNeoXConfig(**SMALL))
    file = case.source / "model.safetensors"
    masks = {
        f"gpt_neox.layers.{layer}.attention.bias": torch.ones(1, 1, 64, 64, dtype=torch.bool)
        for layer in range(2)
    }
    save_file(load_file(file) | masks, file, metadata={"format": "pt"})
    written = case.write(tmp_path / "artifact")
    assert written.parameters == stored_numbers(case.expected)
    assert same(load(tmp_path / "artifact"), case.expected)


def test_tensors_for_further_tokens_are_copied_and_are_no_parameters(
    case: Case, tmp_path: Path
) -> None:
    file = case.source / "model.safetensors"
    extra = {"mtp.fc.weight": torch.rand(4, 8), "mtp.norm.weight": torch.rand(8)}
    save_file(load_file(file) | extra, file, metadata={"format": "pt"})
    assert check_writable(case.source).carried.keys() == extra.keys()
    written = case.write(tmp_path / "artifact", torch.bfloat16)
    assert written.parameters == stored_numbers(case.expected)
    stored = load_file(tmp_path / "artifact" / "model.safetensors")
    assert all(torch.equal(stored[name], extra[name].bfloat16()) for name in extra)
    assert load(tmp_path / "artifact").dtype is torch.bfloat16


@pytest.mark.parametrize(
    ("value", "dtype", "problem", "param"),
    [
        (7e4, torch.float16, "up to 7e\\+04, which torch.float16 cannot hold", "dtype"),
        (float("nan"), torch.float32, "is not finite", "model"),
        (float("inf"), torch.float16, "is not finite", "model"),
    ],
)
def test_numbers_that_the_artifact_cannot_hold_are_refused_by_tensor(
    case: Case, tmp_path: Path, value: float, dtype: torch.dtype, problem: str, param: str
) -> None:
    file, name = case.source / "model.safetensors", "model.layers.1.input_layernorm.weight"
    tensors = load_file(file)
    tensors[name][3] = value
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelInvalid, match=f"'{name}' .*{problem}") as caught:
        case.write(tmp_path / "artifact", dtype)
    assert caught.value.param == param


def rounding_spec(precisions: str) -> JobSpec:
    return JobSpec.model_validate(
        {
            "model": {"source": "local", "path": "/model"},
            "calibration": {"data": {"source": "local", "path": "/texts"}},
            "targets": [{"keep": 0.5}, {"bytes_fraction": 0.5, "precisions": precisions}],
        }
    )


def test_integers_on_cpus_need_sides_that_are_multiples_of_32(tiny_llama: Path) -> None:
    layers = compressible_layers(tiny_model(tiny_llama_config()))
    check_roundable(tiny_llama, rounding_spec("vllm"), layers)
    with pytest.raises(TargetUnreachable) as caught:
        check_roundable(tiny_llama, rounding_spec("vllm-cpu"), layers)
    assert caught.value.param == "targets.1.precisions"
    assert "'model.layers.0.self_attn.k_proj' has 32 and 16" in caught.value.detail


def test_experts_cannot_be_stored_as_integers(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path, ARCHITECTURES["mixtral"])
    with pytest.raises(TargetUnreachable, match="stored together"):
        check_roundable(source, rounding_spec("vllm"), ())


def test_vllm_s_tensor_parallelism_is_refused(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    state = SimpleNamespace(
        model_parallel_is_initialized=lambda: True, get_tensor_model_parallel_world_size=lambda: 2
    )
    monkeypatch.setitem(sys.modules, "vllm.distributed.parallel_state", state)
    case.write(case.source.parent / "artifact")
    with pytest.raises(ValueError, match="leave tensor_parallel_size at 1"):
        AutoModelForCausalLM.from_pretrained(
            case.source.parent / "artifact", trust_remote_code=True
        )

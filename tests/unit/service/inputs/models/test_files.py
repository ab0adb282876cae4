"""Invalid models are refused before they are loaded, each with an error of its own."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import service.inputs.models.files
from service.errors import (
    ModelConfigMissing,
    ModelInvalid,
    NotACausalLM,
    UnsafeWeights,
    UserError,
)
from service.inputs.models.files import (
    check_folder,
    check_safetensors,
    is_companion,
    is_wanted,
    read_tokenizer,
)

PARAM = "model.path"
TENSOR: dict[str, Any] = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


def safetensors(header: object, data: bytes = bytes(16)) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + data


def refused(kind: type[UserError], folder: Path) -> str:
    with pytest.raises(kind) as caught:
        check_folder(folder, PARAM)
    assert caught.value.param == PARAM
    return caught.value.detail


def names_of(path: Path) -> set[str]:
    with path.open("rb") as file:
        return set(check_safetensors(file, path.name, PARAM))


def shard(folder: Path, weight_map: object, **metadata: object) -> None:
    """Turn the model into a sharded one with this index and the file ``part-1.safetensors``."""
    (folder / "model.safetensors").rename(folder / "part-1.safetensors")
    index = json.dumps({"metadata": {}, "weight_map": weight_map} | metadata)
    (folder / "model.safetensors.index.json").write_text(index)


@pytest.mark.parametrize("metadata", [None, 3, []])
def test_an_index_without_metadata_is_refused(model_folder: Path, metadata: object) -> None:
    shard(model_folder, {"model.norm.weight": "part-1.safetensors"}, metadata=metadata)
    assert 'has no object "metadata"' in refused(ModelInvalid, model_folder)


def test_an_index_that_nobody_reads_needs_no_metadata(model_folder: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model.safetensors"}}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    check_folder(model_folder, PARAM)


COMPANIONS = [
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "qwen.tiktoken",
    "chat_template.jinja",
    "generation_config.json",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
    "additional_chat_templates/tool_use.jinja",
]
STRANGERS = [
    "training_args.json",
    "trainer_state.json",
    "secrets.json",
    "requirements.txt",
    "modeling_evil.py",
    "pytorch_model.bin",
    "model.safetensors",
    "manifest.json",
    "report.json",
    "deep/README.md",
    "deep/tokenizer.json",
    "deep/tokenizer.model",
    "deep/chat_template.jinja",
    "additional_chat_templates/code.py",
    "additional_chat_templates/deep/tool_use.jinja",
]


@pytest.mark.parametrize("name", COMPANIONS)
def test_what_goes_with_a_model(name: str) -> None:
    assert is_companion(name)
    assert is_wanted(name)


@pytest.mark.parametrize("name", STRANGERS)
def test_what_does_not(name: str) -> None:
    assert not is_companion(name)
    assert not is_wanted(name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "README.md"])
def test_what_is_fetched_and_never_copied(name: str) -> None:
    assert is_wanted(name)
    assert not is_companion(name)


def test_a_model_passes(model_folder: Path) -> None:
    check_folder(model_folder, PARAM)


def test_a_sharded_model_passes(model_folder: Path) -> None:
    shard(model_folder, {"model.norm.weight": "part-1.safetensors"})
    check_folder(model_folder, PARAM)


def test_pickles_beside_safetensors_do_not_matter(model_folder: Path) -> None:
    (model_folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    check_folder(model_folder, PARAM)


def test_no_config(model_folder: Path) -> None:
    (model_folder / "config.json").unlink()
    assert "no config.json" in refused(ModelConfigMissing, model_folder)


def test_no_config_beside_a_gguf_file_says_what_to_name(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert "Name the .gguf file itself" in refused(ModelConfigMissing, tmp_path)


@pytest.mark.parametrize("config", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_a_config_that_is_no_json_object(model_folder: Path, config: bytes) -> None:
    (model_folder / "config.json").write_bytes(config)
    assert "config.json is not" in refused(ModelInvalid, model_folder)


def test_a_config_beyond_the_bound(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.inputs.models.files, "MAX_CONFIG_BYTES", 10)
    assert "larger than 10 bytes" in refused(ModelInvalid, model_folder)


@pytest.mark.parametrize(
    "architectures",
    [None, [], "LlamaForCausalLM", [1], ["BertModel"], ["T5ForConditionalGeneration"]],
)
def test_not_a_causal_language_model(model_folder: Path, architectures: object) -> None:
    (model_folder / "config.json").write_text(json.dumps({"architectures": architectures}))
    assert repr(architectures) in refused(NotACausalLM, model_folder)


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPT2LMHeadModel"])
def test_causal_language_models(model_folder: Path, architecture: str) -> None:
    (model_folder / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    check_folder(model_folder, PARAM)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "a.pth", "last.ckpt", "w.pkl"])
def test_pickled_weights(model_folder: Path, name: str) -> None:
    (model_folder / "model.safetensors").rename(model_folder / name)
    assert name in refused(UnsafeWeights, model_folder)


def test_no_weights(model_folder: Path) -> None:
    (model_folder / "model.safetensors").unlink()
    assert "neither model.safetensors nor" in refused(ModelInvalid, model_folder)


def test_safetensors_under_a_name_that_transformers_does_not_read(model_folder: Path) -> None:
    (model_folder / "model.safetensors").rename(model_folder / "adapter.safetensors")
    assert "neither model.safetensors nor" in refused(ModelInvalid, model_folder)


@pytest.mark.parametrize(
    ("weight_map", "problem"),
    [
        ({"w": "part-2.safetensors"}, "'part-2.safetensors', which is missing"),
        ({"w": "part-1.safetensors"}, "lacks the tensor 'w'"),
        ({"w": "../part-1.safetensors"}, "not a safetensors file"),
        ({"w": "pytorch_model.bin"}, "not a safetensors file"),
        ({}, "index.json has no weight_map"),
        ({"w": 1}, "index.json gives no file name for 'w'"),
        ({"w" * 1000: [1]}, "gives no file name for '" + "w" * 80 + "…'"),
        ([], "index.json has no weight_map"),
    ],
)
def test_a_bad_index(model_folder: Path, weight_map: object, problem: str) -> None:
    shard(model_folder, weight_map)
    assert problem in refused(ModelInvalid, model_folder)


@pytest.mark.parametrize(
    "weight_map", [{"w": "part-1.safetensors"}, {}, {"w": "model-00001-of-00002.safetensors"}]
)
def test_two_checkpoints_in_one_folder(model_folder: Path, weight_map: object) -> None:
    weights = (model_folder / "model.safetensors").read_bytes()
    shard(model_folder, weight_map)
    (model_folder / "model.safetensors").write_bytes(weights)
    said = refused(ModelInvalid, model_folder)
    assert "both model.safetensors and model.safetensors.index.json" in said


def test_an_index_of_the_one_file_beside_it(model_folder: Path) -> None:
    index = model_folder / "model.safetensors.index.json"
    (name, *_) = names_of(model_folder / "model.safetensors")
    index.write_text(json.dumps({"weight_map": {name: "model.safetensors"}}))
    check_folder(model_folder, PARAM)
    index.write_text(json.dumps({"weight_map": {"absent": "model.safetensors"}}))
    assert "lacks the tensor 'absent'" in refused(ModelInvalid, model_folder)


def test_an_index_beyond_the_bound(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.inputs.models.files, "MAX_INDEX_BYTES", 10)
    shard(model_folder, {"w": "part-1.safetensors"})
    assert "larger than 10 bytes" in refused(ModelInvalid, model_folder)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is truncated"),
        (b"\x01\x00", "is truncated"),
        (struct.pack("<Q", 2**63), "is truncated"),
        (safetensors({"w": TENSOR}, bytes(15)), "is truncated"),
        (safetensors({"w": TENSOR}, bytes(17)), "belong to no tensor"),
        (safetensors(b"{"), "is not a JSON object"),
        (safetensors(b"[]"), "is not a JSON object"),
        (safetensors(b"\xff\xff"), "is not a JSON object"),
        (
            safetensors({"w": 1}),
            "'w' of 'model.safetensors' is described wrongly: it is not an object.",
        ),
        (
            safetensors({"w": {**TENSOR, "data_offsets": [0, 16, 32]}}),
            "described wrongly: data_off",
        ),
        (safetensors({"w": {**TENSOR, "data_offsets": [-16, 0]}}), "wrongly: data_offsets.0: "),
        (safetensors({"w": {**TENSOR, "shape": [-2, -2]}}), "described wrongly: shape.0: "),
        (safetensors({"w": {**TENSOR, "shape": [1] * 40_000}}), "described wrongly: shape: "),
        (safetensors({"w": {**TENSOR, "shape": [2**200]}}), "described wrongly: shape.0: "),
        (safetensors({"w": {**TENSOR, "data_offsets": [16, 0]}}), "out of place"),
        (safetensors({"w": {**TENSOR, "data_offsets": [1, 17]}}, bytes(17)), "out of place"),
        (safetensors({"w": TENSOR, "v": TENSOR}), "out of place"),
        (safetensors({"w": {**TENSOR, "shape": [2, 3]}}), "wrong size"),
        (safetensors({"w": {**TENSOR, "dtype": "BF16"}}), "wrong size"),
    ],
)
def test_bad_safetensors(model_folder: Path, content: bytes, problem: str) -> None:
    (model_folder / "model.safetensors").write_bytes(content)
    assert problem in refused(ModelInvalid, model_folder)


def test_a_header_beyond_the_bound(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.inputs.models.files, "MAX_HEADER_BYTES", 10)
    assert "larger than 10 bytes" in refused(ModelInvalid, model_folder)


def test_metadata_and_unknown_dtypes_are_no_fault(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "w": {**TENSOR, "dtype": "Z9_NEW"}}
    path = tmp_path / "x.safetensors"
    path.write_bytes(safetensors(header))
    assert names_of(path) == {"w"}


@given(st.binary(max_size=64))
def test_any_bytes_are_judged_without_a_crash(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    path.write_bytes(content)
    with suppress(ModelInvalid):
        names_of(path)


def test_an_adapter_beside_a_model_is_refused(model_folder: Path) -> None:
    (model_folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(ModelInvalid, match=r"adapter_config\.json.*Merge it") as caught:
        check_folder(model_folder, "model.path")
    assert caught.value.param == "model.path"


def test_an_adapter_alone_is_refused_as_an_adapter(model_folder: Path) -> None:
    (model_folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (model_folder / "config.json").unlink()
    with pytest.raises(ModelInvalid, match="There is an adapter"):
        check_folder(model_folder, "model.path")


@pytest.mark.parametrize(
    ("quantization", "said"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"group_size": 64, "bits": 4}, "quantization_config"),
        ("odd", "quantization_config"),
    ],
)
def test_a_quantised_model_is_refused_by_its_method(
    model_folder: Path, quantization: object, said: str
) -> None:
    path = model_folder / "config.json"
    config = json.loads(path.read_text()) | {"quantization_config": quantization}
    path.write_text(json.dumps(config))
    assert f"quantised ({said}). Name the original" in refused(ModelInvalid, model_folder)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F4"])
def test_a_quantised_tensor_is_refused_by_its_name(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors({"model.up": TENSOR | {"dtype": dtype, "shape": [16]}}))
    with pytest.raises(ModelInvalid, match=rf"'model.up' .* is quantised \({dtype}\)"):
        names_of(path)


SPAN = st.tuples(st.integers(0, 6), st.integers(0, 3))


@given(st.lists(SPAN, max_size=5), st.integers(0, 8))
def test_tensors_fill_the_file_exactly_if_each_begins_where_one_ends(
    tmp_path_factory: pytest.TempPathFactory, spans: list[tuple[int, int]], size: int
) -> None:
    header = {
        str(number): {"dtype": "U8", "shape": [length], "data_offsets": [begin, begin + length]}
        for number, (begin, length) in enumerate(spans)
    }
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    path.write_bytes(safetensors(header, bytes(size)))
    ordered = [(begin, begin + length) for begin, length in sorted(spans)]
    begins, ends = [begin for begin, _ in ordered], [0, *(end for _, end in ordered)]
    if [*begins, size] == ends:
        assert len(names_of(path)) == len(spans)
    else:
        with pytest.raises(ModelInvalid):
            names_of(path)


def test_a_flood_of_tensors_is_refused(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.inputs.models.files, "MAX_TENSORS", 2)
    three = {name: {**TENSOR, "data_offsets": [0, 16]} for name in "abc"}
    (model_folder / "model.safetensors").write_bytes(safetensors(three))
    assert "'model.safetensors' has more than 2 tensors" in refused(ModelInvalid, model_folder)
    shard(model_folder, dict.fromkeys("abc", "part-1.safetensors"))
    assert "index.json has more than 2 tensors" in refused(ModelInvalid, model_folder)


def test_the_files_of_a_tokenizer_are_read_within_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = "x" * 250 + ".model"  # as the key of an object may be
    sizes = {"tokenizer.json": 4, "vocab.txt": 4, "config.json": 4, "README.md": 4, long: 4}
    for name in sizes.keys() - {long}:
        (tmp_path / name).write_bytes(b"1234, and more since")

    def read() -> dict[str, bytes] | None:
        return read_tokenizer(sizes, lambda name: (tmp_path / name).open("rb"))

    assert read() == {"tokenizer.json": b"1234", "vocab.txt": b"1234"}
    for limit, value in (("MAX_TOKENIZER_BYTES", 7), ("MAX_TOKENIZER_FILES", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(service.inputs.models.files, limit, value)
            assert read() is None

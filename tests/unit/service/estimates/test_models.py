"""The shapes of a model are those of its files, and files may say anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.domain.costs.machines import cluster_of
from service.domain.costs.shapes import MAX_BLOCKS, MAX_NUMBER, Model, ShapesUnknown
from service.domain.costs.sizes import Sizes
from service.domain.costs.steps import step_costs
from service.domain.placement import Placement
from service.domain.spec.job import JobSpec
from service.domain.spec.sources import LocalPath
from service.errors import TargetUnreachable
from service.estimates.models import model_of
from service.inputs.models.files import ModelHeaders, StoredTensor
from service.inputs.models.gguf_header import GGUFHeader
from service.inputs.models.sources import Headers, check_model
from service.settings import Settings
from tests.fixtures.gguf_files import WHOLE, write_llama
from tests.fixtures.models import ARCHITECTURES, tiny_llama_config, tiny_model

PLACEMENT = Placement(2, 1, 1)


def headers(path: Path) -> Headers:
    settings = Settings(data_dir=path.parent / "data", allowed_roots=(path.parent,))
    found = check_model(LocalPath(source="local", path=str(path)), settings)
    assert found is not None
    return found


@pytest.mark.parametrize("name", ["llama", "phi3", "mixtral", "gemma3"])
def test_a_checkpoint_has_the_shapes_and_the_precision_of_its_numbers(
    name: str, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    model = tiny_model(ARCHITECTURES[name])
    model.bfloat16().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    found = model_of(headers(folder))
    assert found.parameters == sum(each.numel() for each in model.parameters())
    assert found.dtype == "bfloat16"


def test_a_gguf_file_has_the_shapes_of_its_expansion(tmp_path: Path) -> None:
    found = model_of(headers(write_llama(tmp_path / "model.gguf")))
    assert found.parameters == 2 * 258 * 32 + 32 + 2 * 32 + 4 * 32 * 32 + 3 * 64 * 32
    assert found.linear == 4 * 32 * 32 + 3 * 64 * 32
    assert found.dtype == "float32"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"left_out": "blk.0.ffn_up.weight"}, "metadata describe a model of"),
        ({"added": {"rope_freqs.weight": 4}}, "metadata describe a model of"),
    ],
)
def test_a_gguf_file_that_is_not_what_it_says_is_not_guessed(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    found = headers(write_llama(tmp_path / "model.gguf", **changes))
    with pytest.raises(ShapesUnknown, match=words):
        model_of(found)


def config(**changes: Any) -> dict[str, Any]:
    return {**tiny_llama_config().to_dict(), **changes}


def stored(said: dict[str, Any], numbers: int = 10**6) -> ModelHeaders:
    tensors = {"all": StoredTensor("BF16", [numbers])}
    return ModelHeaders(["model.safetensors"], json.dumps(said).encode(), tensors)


def test_a_configuration_of_more_than_is_stored_is_not_believed() -> None:
    model_of(stored(config()))
    with pytest.raises(ShapesUnknown, match=r"but the checkpoint holds 100$"):
        model_of(stored(config(), numbers=100))
    with pytest.raises(ShapesUnknown, match=f"{MAX_BLOCKS + 1} blocks"):
        model_of(stored(config(num_hidden_layers=MAX_BLOCKS + 1)))


def test_numbers_too_large_to_be_printed_are_not_known() -> None:
    """Python prints no number of more than 4300 digits."""
    said = config(hidden_size=10**3000, intermediate_size=10**3000)
    with pytest.raises(ShapesUnknown, match=f"'hidden_size' as a number from 1 to {MAX_NUMBER}"):
        model_of(stored(said))


def test_tensors_whose_size_is_not_checked_hold_no_parameters() -> None:
    tensors = {"a": StoredTensor("BF16", [100]), "b": StoredTensor("other", [10**9])}
    headers = ModelHeaders([], json.dumps(config()).encode(), tensors)
    with pytest.raises(ShapesUnknown, match=r"but the checkpoint holds 100$"):
        model_of(headers)


LONG = "long" * 1000


def test_long_names_are_cut() -> None:
    metadata = {"general.architecture": LONG}
    for headers in (stored(config(model_type=LONG)), GGUFHeader(1, metadata, {"a": (1,)})):
        with pytest.raises(ShapesUnknown, match=r"longlong.*…") as found:
            model_of(headers)
        assert len(str(found.value)) < 400


@pytest.mark.parametrize("shape", [(), (32,), (2**63,) * 8])
def test_a_gguf_embedding_of_any_shape_is_not_guessed(shape: tuple[int, ...]) -> None:
    metadata = {**WHOLE, "llama.feed_forward_length": 64, "llama.attention.head_count": 4}
    with pytest.raises(ShapesUnknown, match="'vocab_size'"):
        model_of(GGUFHeader(1, metadata, {"token_embd.weight": shape}))


def test_a_checkpoint_without_weights_is_named() -> None:
    headers = ModelHeaders([], json.dumps(config()).encode(), {"a": StoredTensor("I64", [4])})
    with pytest.raises(ShapesUnknown, match="holds no weights in F32, BF16, F16"):
        model_of(headers)


VALUES: list[Callable[[Any], Any]] = [
    lambda _: None,
    lambda _: 0,
    lambda _: -1,
    lambda _: 10**30,
    lambda _: True,
    lambda _: 0.5,
    lambda _: "2",
    lambda _: [[1]],
    lambda _: {},
]
KEYS = sorted(
    {
        *("model_type", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("vocab_size", "intermediate_size", "num_hidden_layers", "tie_word_embeddings"),
        *("num_experts", "num_local_experts", "moe_intermediate_size", "num_experts_per_tok"),
        *("decoder_sparse_step", "mlp_only_layers", "attention_bias"),
    }
)


@given(
    name=st.sampled_from(["llama", "mixtral", "qwen3-moe", "phi3"]),
    changes=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), max_size=3),
)
@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
def test_whatever_config_json_says_it_is_estimated_or_not_known(
    name: str, changes: dict[str, Callable[[Any], Any]]
) -> None:
    """Takes about two seconds."""
    said = ARCHITECTURES[name].to_dict()
    said |= {key: value(said.get(key)) for key, value in changes.items()}
    try:
        model = model_of(stored(said))
    except ShapesUnknown:
        return
    estimate(model)


def estimate(model: Model) -> None:
    spec = JobSpec.model_validate(
        {
            "model": {"source": "local", "path": "/model"},
            "calibration": {"data": {"source": "local", "path": "/text"}},
            "targets": [{"keep": 0.5}, {"bytes_fraction": 0.5, "precisions": "transformers"}],
        }
    )
    cluster = cluster_of(PLACEMENT, [])
    for cost in step_costs(model, spec, cluster).values():
        assert all(seconds >= 0 for seconds in cost.seconds(cluster).values())
    for target in spec.targets:
        try:
            size = Sizes(model, spec).of(target, "targets.0")
        except TargetUnreachable:
            continue
        assert size is not None
        assert 0 <= size.linear_parameters <= size.parameters

"""A model is judged by its config.json and its tensors' shapes, in a process with bounds.

The first inspection of a test process takes about 4 seconds, each further one 0.1.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from service.domain.spec import JobSpec
from service.errors import InvalidParameter, ModelInvalid, UserError
from service.inputs import inspection
from service.inputs.inspection import inspect_model
from tests.fixtures.models import ARCHITECTURES, tiny_llama_config

LLAMA: dict[str, Any] = tiny_llama_config().to_dict() | {"architectures": ["LlamaForCausalLM"]}


def shapes_of(config: Any) -> dict[str, list[int]]:
    """The shapes that a checkpoint of the configuration has."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tied = model.all_tied_weights_keys
    return {name: [*each.shape] for name, each in model.state_dict().items() if name not in tied}


SHAPES = shapes_of(tiny_llama_config())


@pytest.fixture
def spec(job_spec: JobSpec) -> JobSpec:
    """A job with sequences that the tiny models can read."""
    return job_spec.model_copy(
        update={
            "calibration": job_spec.calibration.model_copy(update={"sequence_length": 64}),
            "evaluation": job_spec.evaluation.model_copy(update={"decode_tokens": 4}),
        }
    )


def refusal(spec: JobSpec, shapes: Mapping[str, list[int]] = SHAPES, **changes: Any) -> str:
    with pytest.raises(ModelInvalid) as caught:
        inspect_model(json.dumps(LLAMA | changes).encode(), shapes, spec)
    assert caught.value.param == "model"
    return caught.value.detail


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral", "phi3"])
def test_a_sound_model_passes(spec: JobSpec, name: str) -> None:
    config = ARCHITECTURES[name]
    inspect_model(json.dumps(config.to_dict()).encode(), shapes_of(config), spec)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"num_hidden_layers": "2"},
            "Field 'num_hidden_layers' expected int, got str (value: '2')",
        ),
        ({"num_attention_heads": 3}, "hidden size (32) is not a multiple of the number of"),
        ({"layer_types": ["full_attention"] * 3}, "must be equal to the number of `layer_types`"),
        ({"hidden_act": "relu7"}, "config.json sets hidden_act to 'relu7', which transformers"),
        (
            {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}},
            "config.json sets rope_parameters.rope_type to 'spiral', which transformers",
        ),
        ({"dtype": "int5"}, "`dtype=torch.int5`"),
        ({"model_type": "sheep"}, "model type `sheep`"),
        (
            {"intermediate_size": 81},
            "'model.layers.0.mlp.gate_proj.weight' has the shape [80, 32], but with config.json "
            "LlamaForCausalLM has [81, 32]",
        ),
        ({"num_hidden_layers": 3}, "the checkpoint has no model.layers.2."),
        ({"num_hidden_layers": 1}, "but num_hidden_layers in config.json is 1"),
    ],
    ids=str,
)
def test_a_wrong_configuration_is_refused_in_plain_words(
    spec: JobSpec, changes: dict[str, Any], words: str
) -> None:
    message = refusal(spec, **changes)
    assert words in message
    assert "Error" not in message


def test_a_tensor_without_a_place_is_refused(spec: JobSpec) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    assert f"the checkpoint holds '{name}'" in refusal(spec, SHAPES | {name: [32]})


def test_sequences_longer_than_the_model_reads_are_refused(spec: JobSpec) -> None:
    config = json.dumps(LLAMA | {"max_position_embeddings": 63}).encode()
    with pytest.raises(InvalidParameter) as caught:
        inspect_model(config, SHAPES, spec)
    assert caught.value.param == "calibration.sequence_length"


def test_a_layer_of_another_kind_is_refused(spec: JobSpec) -> None:
    config = ARCHITECTURES["gpt2"].to_dict() | {"add_cross_attention": True}
    with pytest.raises(UserError):
        inspect_model(json.dumps(config).encode(), SHAPES, spec)


@pytest.mark.parametrize(
    ("bound", "value", "words"),
    [("MAX_SECONDS", 1, "too much time"), ("MAX_MEMORY_BYTES", 2**26, "too much memory")],
)
def test_a_model_beyond_the_bounds_is_refused(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch, bound: str, value: int, words: str
) -> None:
    refusal(spec, num_hidden_layers=1)  # so that the process to fork from is there
    monkeypatch.setattr(inspection, bound, value)
    assert words in refusal(spec, num_hidden_layers=10**7)


def test_more_names_than_the_bound_are_left_to_the_workers(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "MAX_TENSORS", len(SHAPES))
    inspect_model(json.dumps(LLAMA).encode(), SHAPES | {"another": [3]}, spec)


def test_without_transformers_the_workers_look_first(
    spec: JobSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "_available", lambda: False)
    inspect_model(b"{}", {}, spec)

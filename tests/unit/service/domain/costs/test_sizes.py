"""Sizes before calibration are those that the engine's own choice has, with the same errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from service.domain.costs.shapes import Model, model_shapes
from service.domain.costs.sizes import Sizes, TargetSize, linear_budget
from service.domain.spec.job import JobSpec
from service.domain.spec.targets import SizeTarget
from service.errors import TargetUnreachable
from tests.fixtures.models import ARCHITECTURES, save_tiny_model, tiny_llama_config, tiny_model
from workers.artifact.checkpoint_writer import check_roundable
from workers.attempt.targets import Choices
from workers.compression.candidates import (
    Form,
    LayerCandidates,
    RoundedCandidate,
    Width,
    total_bytes,
    total_cost,
)
from workers.compression.layers import compressible_layers, input_groups
from workers.compression.rounding.grid import stored_bytes
from workers.compression.shapes import InputGroup, LinearLayer
from workers.compression.solve import _fixed_cost, break_even_rank, rank_tile
from workers.compression.unfuse import unfuse

NUMBER_BYTES = 2
WIDE = {"hidden_size": 768, "intermediate_size": 1024, "num_hidden_layers": 1}
WIDTHS = [Width(bits) for bits in (2, 3, 4, 5, 6, 8)]
CONFIGURATIONS = {
    name: ARCHITECTURES[name] for name in ("llama", "qwen2", "phi3", "gemma2", "mixtral")
} | {"biases": tiny_llama_config(attention_bias=True, mlp_bias=True, num_hidden_layers=3)}
CONFIGURATIONS["wide"] = tiny_llama_config(**WIDE)  # a wide layer of low rank can be faster


def spec(*targets: dict[str, Any], **changes: Any) -> JobSpec:
    return JobSpec.model_validate(
        {
            "model": {"source": "local", "path": "/model"},
            "calibration": {"data": {"source": "local", "path": "/text"}},
            "targets": list(targets),
            "dtype": "bfloat16",
        }
        | changes
    )


def groups_of(name: str) -> tuple[InputGroup, ...]:
    model = tiny_model(CONFIGURATIONS[name])
    unfuse(model)
    return input_groups(model, compressible_layers(model))


def shapes(name: str) -> Model:
    return model_shapes(CONFIGURATIONS[name].to_dict() | {"dtype": "float32"})


def candidates(layer: LinearLayer, random: torch.Generator) -> LayerCandidates:
    """What the engine has to choose from after a calibration with any result."""
    spectrum, _ = torch.rand(layer.smaller_side, generator=random).double().sort(descending=True)
    tile = rank_tile(layer)
    return LayerCandidates(
        layer.name,
        spectrum,
        max_rank=break_even_rank(layer, has_bias=True) // tile * tile,
        tile=tile,
        dense_cost=layer.parameters,
        sides=layer.out_features + layer.in_features,
        fixed_cost=_fixed_cost(layer, True, LayerCandidates.storage),
        dense_bytes=layer.parameters * NUMBER_BYTES,
        rounded=tuple(
            RoundedCandidate(width, stored_bytes(layer, width, NUMBER_BYTES), 2.0**-width.bits)
            for width in WIDTHS
        ),
    )


class Engine:
    """The engine's choices for a job, on a model of an architecture."""

    def __init__(self, name: str, wanted: JobSpec) -> None:
        groups, random = groups_of(name), torch.Generator().manual_seed(0)
        self.layers = [layer for group in groups for layer in group.layers]
        self.options = [candidates(layer, random) for layer in self.layers]
        units = [[layer.name for layer in group.layers] for group in groups]
        self.choices = Choices(wanted, shapes(name).parameters, self.options, units)

    def forms(self) -> dict[str, Form]:
        (forms,) = self.choices.of_targets(lambda *_: 0.0)
        return dict(forms)

    @property
    def step(self) -> int:
        """The parameters of the most expensive step from one rank to the next."""
        return max(each.sides * each.tile for each in self.options)


def size_of(name: str, wanted: JobSpec) -> TargetSize:
    size = Sizes(shapes(name), wanted).of(wanted.targets[0], "targets.0")
    assert size is not None
    return size


@pytest.mark.parametrize("scope", ["linear", "model"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_keep_has_at_most_the_parameters_that_are_said_and_nearly_all(
    name: str, scope: str
) -> None:
    wanted = spec({"keep": 0.8, "scope": scope})
    size, engine = size_of(name, wanted), Engine(name, wanted)
    kept = total_cost(engine.options, engine.forms())
    assert size.linear_parameters - engine.step < kept <= size.linear_parameters
    others = shapes(name).parameters - shapes(name).linear
    assert size.parameters == others + size.linear_parameters
    assert size.linear_bytes == NUMBER_BYTES * size.linear_parameters


UNIFORM = [(name, keep, "size") for name in CONFIGURATIONS for keep in (0.35, 0.6, 0.9)]


@pytest.mark.parametrize(("name", "keep", "optimize"), [*UNIFORM, ("wide", 0.7, "speed")])
def test_uniform_ranks_are_known_exactly(name: str, keep: float, optimize: str) -> None:
    wanted = spec({"keep": keep, "optimize": optimize}, allocation="uniform")
    engine = Engine(name, wanted)
    assert size_of(name, wanted).linear_parameters == total_cost(engine.options, engine.forms())


@pytest.mark.parametrize(
    "target",
    [
        {"bytes_fraction": 0.6},
        {"bytes_fraction": 0.6, "precisions": "transformers"},
        {"bytes_fraction": 0.9, "scope": "model", "precisions": "transformers"},
        {"bytes": 10**9},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["llama", "phi3", "biases"])
def test_bytes_are_at_most_those_that_are_said(name: str, target: dict[str, Any]) -> None:
    wanted = spec(target)
    size, engine = size_of(name, wanted), Engine(name, wanted)
    stored = total_bytes(engine.options, engine.forms())
    assert 0.8 * size.linear_bytes < stored <= size.linear_bytes
    assert size.parameters == shapes(name).parameters
    others = (shapes(name).parameters - shapes(name).linear) * NUMBER_BYTES
    assert size.bytes == size.linear_bytes + others
    if "bytes" in target:
        assert size.bytes == NUMBER_BYTES * shapes(name).parameters


SMALL: list[dict[str, Any]] = [
    {"keep": 0.05},
    {"keep": 0.1, "scope": "model"},
    {"keep": 0.8, "optimize": "speed"},
    {"bytes_fraction": 0.1},
    {"bytes_fraction": 0.1, "precisions": "transformers"},
    {"bytes": 1000, "scope": "model"},
]


@pytest.mark.parametrize(
    ("name", "target"),
    [
        *((name, target) for name in ("llama", "qwen2", "phi3", "biases") for target in SMALL),
        ("wide", {"keep": 0.05, "optimize": "speed"}),
        ("wide", {"keep": 0.01}),
    ],
    ids=str,
)
def test_what_is_out_of_reach_is_refused_in_the_engine_s_words(
    name: str, target: dict[str, Any]
) -> None:
    wanted = spec(target)
    with pytest.raises(TargetUnreachable) as engine_s:
        Engine(name, wanted).forms()
    with pytest.raises(TargetUnreachable) as ours:
        size_of(name, wanted)
    assert ours.value.failure() == engine_s.value.failure()


def test_a_quality_has_no_size_yet_unless_nothing_is_smaller() -> None:
    wanted = spec({"max_perplexity_increase": 0.1})
    assert Sizes(shapes("llama"), wanted).of(wanted.targets[0], "targets.0") is None
    smallest = tiny_llama_config(hidden_size=2, intermediate_size=2, num_attention_heads=1)
    model = model_shapes(smallest.to_dict() | {"dtype": "float32", "num_key_value_heads": 1})
    with pytest.raises(TargetUnreachable, match="No rank makes this model smaller") as caught:
        Sizes(model, wanted).of(wanted.targets[0], "targets.3")
    assert caught.value.param == "targets.3.max_perplexity_increase"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("mixtral", {"bytes_fraction": 0.5}),
        ("mixtral", {"max_perplexity_increase": 0.1, "precisions": "vllm"}),
        ("llama", {"bytes_fraction": 0.5, "precisions": "vllm-cpu"}),
    ],
)
def test_integers_are_refused_where_the_engine_refuses_them(
    name: str, target: dict[str, Any], tmp_path: Any
) -> None:
    wanted = spec({"keep": 0.5}, target)
    source = save_tiny_model(tmp_path, CONFIGURATIONS[name])
    layers = [layer for group in groups_of(name) for layer in group.layers]
    with pytest.raises(TargetUnreachable) as engine_s:
        check_roundable(source, wanted, layers)
    with pytest.raises(TargetUnreachable) as ours:
        Sizes(shapes(name), wanted).of(wanted.targets[1], "targets.1")
    assert ours.value.param == engine_s.value.param == "targets.1.precisions"
    assert ours.value.detail[:30] == engine_s.value.detail[:30]


def test_the_budget_of_a_fraction_of_the_model_leaves_room_for_the_rest() -> None:
    assert linear_budget(SizeTarget(keep=0.5), 3000, 2048) == 1024
    assert linear_budget(SizeTarget(keep=0.5, scope="model"), 3000, 2048) == 1500 - 952

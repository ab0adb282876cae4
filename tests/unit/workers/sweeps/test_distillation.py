"""The gradients of a student, block by block, are those of automatic differentiation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.models import ARCHITECTURES, tiny_model
from workers.compression.candidates import Width
from workers.compression.layers import compressible_layers
from workers.compression.recovery.student import trainable
from workers.compression.recovery.training import RoundedLayer, TrainedLayer
from workers.compression.rounding.grid import RoundedWeight
from workers.compression.solve import Factors
from workers.compression.unfuse import unfuse
from workers.sweeps.boundaries import Boundaries
from workers.sweeps.distillation import Distillation
from workers.sweeps.passage import InMemory, Passage

TOKENS = torch.randint(258, (3, 20), generator=torch.Generator().manual_seed(0))


def model_of(name: str) -> Any:
    model = tiny_model(ARCHITECTURES[name]).double()
    unfuse(model)
    return model.eval().requires_grad_(False)


def student_of(model: Any) -> dict[str, TrainedLayer]:
    """Of three layers one at a low rank, one in few bits and one dense."""
    generator = torch.Generator().manual_seed(1)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) / 4

    def rounded(out: int, into: int) -> RoundedLayer:
        codes = torch.randint(-8, 8, (out, into), dtype=torch.int8, generator=generator)
        return RoundedLayer(RoundedWeight(Width(4), codes, random(out, 1) / 8), random(out))

    layers = list(compressible_layers(model))
    low = {
        layer.name: Factors(
            random(3, layer.in_features), random(layer.out_features, 3), random(layer.out_features)
        )
        for layer in layers[::3]
    }
    few = {layer.name: rounded(layer.out_features, layer.in_features) for layer in layers[1::3]}
    return low | few


def differentiated(
    model: Any, student: dict[str, TrainedLayer]
) -> tuple[float, dict[str, dict[str, Tensor]]]:
    """The divergence and its gradients by automatic differentiation of the whole model."""
    with torch.no_grad():
        wanted = model(TOKENS).logits.log_softmax(-1)
    whole = copy.deepcopy(model)
    modules = {name: trainable(copy.deepcopy(layer)) for name, layer in student.items()}
    for name, module in modules.items():
        whole.set_submodule(name, module)
    found = whole(TOKENS).logits.log_softmax(-1)
    divergence = (wanted.exp() * (wanted - found)).sum()
    divergence.backward()
    return float(divergence.detach()), {
        name: module.gradients() for name, module in modules.items()
    }


def taught(passage: Passage) -> Tensor:
    """The teacher's last hidden state."""
    hidden, calls = passage.enter(TOKENS)
    for block, call in zip(passage.blocks, calls, strict=True):
        hidden = call(block, hidden)
    return hidden


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_are_those_of_the_whole_model(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    student = student_of(model)
    expected, gradients = differentiated(model, student)
    passage = Passage(model)
    last = taught(passage)
    distillation = Distillation(
        passage, InMemory(passage), [TOKENS], lambda _: last, Boundaries({}, tmp_path)
    )
    blocks = range(len(passage.blocks))

    def inside(number: int) -> dict[str, TrainedLayer]:
        prefix = f"{passage.prefix}.{number}."
        return {layer: each for layer, each in student.items() if layer.startswith(prefix)}

    distillation.enter(0)
    for number in blocks:
        distillation.forward(number, inside(number), returns=True)
    assert distillation.divergence(returns=True) == pytest.approx(expected, rel=1e-6)
    found: dict[str, dict[str, Tensor]] = {}
    for number in reversed(blocks):
        found |= distillation.backward(number, inside(number))
    assert found.keys() == student.keys()
    largest = max(float(each["up"].norm()) for each in gradients.values() if "up" in each)
    assert largest > 0
    for layer, gradient in gradients.items():
        assert found[layer].keys() == gradient.keys()
        for part, expected_part in gradient.items():
            error = (found[layer][part] - expected_part).norm()
            # A key's bias changes no attention: its gradient is zero but for rounding.
            assert error <= 1e-5 * expected_part.norm() + 1e-9 * largest, (layer, part)

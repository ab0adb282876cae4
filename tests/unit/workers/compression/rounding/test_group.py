"""Rounding of layers from statistics of real passes, priced by a float64 oracle."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.fixtures.calibration import Differentiated, calibrated
from tests.fixtures.models import tiny_llama_config, tiny_model
from workers.compression.candidates import Width
from workers.compression.layers import compressible_layers, input_groups
from workers.compression.metrics import METHODS, SHRINKAGE
from workers.compression.rounding.feedback import Metric
from workers.compression.rounding.grid import best_scales, nearest
from workers.compression.rounding.group import damped, price, round_group
from workers.compression.shapes import InputGroup
from workers.compression.statistics import GroupStatistics, Observation

WIDTHS = [Width(2), Width(4), Width(8)]
OBSERVATIONS = METHODS["impact-kron"].observations | {Observation.BOTH_SIDES}


Measured = tuple[dict[str, Tensor], Differentiated, dict[str, GroupStatistics], list[InputGroup]]


@pytest.fixture(scope="module")
def calibration() -> Measured:
    model = tiny_model(tiny_llama_config()).double()
    tokens = torch.randint(258, (4, 32), generator=torch.Generator().manual_seed(0))
    layers = compressible_layers(model)
    weights = {each.name: model.get_submodule(each.name).weight.detach() for each in layers}
    truth = Differentiated(model, tokens)
    model.zero_grad(set_to_none=True)
    groups = list(input_groups(model, layers))
    return weights, truth, calibrated(model, tokens, observations=OBSERVATIONS), groups


def test_the_price_is_that_of_the_rounded_weight(calibration: Measured) -> None:
    weights, truth, statistics, groups = calibration
    for group in groups:
        found = round_group(group, weights, statistics[group.name], WIDTHS, torch.bfloat16)
        for name, priced in found.items():
            gradients = truth.gradients[name]
            moment = gradients.T @ gradients / len(gradients)
            left = (1 - SHRINKAGE) * moment + SHRINKAGE * moment.diagonal().diag()
            inputs = truth.inputs[name].flatten(0, 1)
            right = inputs.T @ inputs / len(inputs)
            for each in priced:
                steps = each.weight.scales.double().repeat_interleave(
                    each.weight.codes.shape[1] // each.weight.scales.shape[1], 1
                )
                error = each.weight.codes.double() * steps - weights[name]
                expected = float(torch.trace(left @ error @ right @ error.T))
                assert each.error == pytest.approx(expected, rel=1e-4)


def test_more_bits_cost_less_and_rounding_beats_nearest(calibration: Measured) -> None:
    weights, _, statistics, groups = calibration
    for group in groups:
        measured = statistics[group.name]
        for name, priced in round_group(group, weights, measured, WIDTHS, torch.bfloat16).items():
            errors = [each.error for each in priced]
            assert errors == sorted(errors, reverse=True)
            assert measured.inputs is not None
            right = measured.inputs.second_moment()
            moment = measured.gradient_moments[name].double() / measured.tokens
            left = (1 - SHRINKAGE) * moment + SHRINKAGE * moment.diagonal().diag()
            for each in priced:
                importance = Metric.of(damped(right)).importance
                width = each.weight.width
                scales = best_scales(weights[name], importance, width, torch.bfloat16)
                assert torch.equal(scales, each.weight.scales)
                plain = nearest(weights[name], scales, width).dequantized()
                assert each.error <= price(plain - weights[name].float(), left, right)


def test_an_expert_without_tokens_is_rounded_to_nearest_for_nothing(calibration: Measured) -> None:
    weights, _, statistics, groups = calibration
    empty = GroupStatistics(tokens=statistics[groups[0].name].tokens)
    for priced in round_group(groups[0], weights, empty, WIDTHS, torch.float16).values():
        assert [each.error for each in priced] == [0.0] * len(WIDTHS)

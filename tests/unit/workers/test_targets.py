"""Sizes asked for, and the ranks that meet them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from service.errors import TargetUnreachable
from service.spec import JobSpec, Target
from workers.compression.allocation import LayerOptions, total_cost
from workers.targets import choose_ranks, linear_budget

PARAMETERS = 3000
"""Of the whole model; 2048 of them are the layers'."""


def layer(name: str) -> LayerOptions:
    spectrum = torch.logspace(0, -4, 32, dtype=torch.float64)
    return LayerOptions(name, spectrum, 15, dense_cost=1024, sides=64, fixed_cost=32)


LAYERS = [layer("a"), layer("b")]


def spec(*targets: dict[str, Any], allocation: str = "global") -> JobSpec:
    return JobSpec.model_validate(
        {
            "model": {"source": "local", "path": "/model"},
            "calibration": {"data": {"source": "local", "path": "/text"}},
            "targets": list(targets),
            "allocation": allocation,
        }
    )


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_every_target_is_met(allocation: str) -> None:
    wanted = spec(
        {"keep": 0.8}, {"keep": 0.5}, {"keep": 0.8, "scope": "model"}, allocation=allocation
    )
    chosen = choose_ranks(wanted, PARAMETERS, LAYERS)
    costs = [total_cost(LAYERS, ranks) for ranks in chosen]
    assert costs[0] <= 0.8 * 2048
    assert costs[1] <= 0.5 * 2048 < costs[0]
    assert costs[2] + (PARAMETERS - 2048) <= 0.8 * PARAMETERS


def test_the_budget_of_a_fraction_of_the_model_leaves_room_for_the_rest() -> None:
    assert linear_budget(Target(keep=0.5), PARAMETERS, LAYERS) == 1024
    assert linear_budget(Target(keep=0.5, scope="model"), PARAMETERS, LAYERS) == 1500 - 952


@pytest.mark.parametrize(
    "unreachable", [{"keep": 0.05}, {"keep": 0.3, "scope": "model"}], ids=["linear", "model"]
)
def test_a_target_out_of_reach_is_named(unreachable: dict[str, Any]) -> None:
    with pytest.raises(TargetUnreachable) as caught:
        choose_ranks(spec({"keep": 0.8}, unreachable), PARAMETERS, LAYERS)
    assert caught.value.param == "targets.1.keep"
    reachable = unreachable | {"keep": float(caught.value.detail.rstrip(".").rpartition(" ")[2])}
    assert choose_ranks(spec(reachable), PARAMETERS, LAYERS) == [{"a": 1, "b": 1}]

"""Sweeps give the statistics of automatic differentiation, for every architecture."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.calibration import Differentiated, sweep, swept
from tests.fixtures.models import ARCHITECTURES, tiny_model
from workers.compression.statistics import GroupStatistics, Observation
from workers.compression.unfuse import unfuse

EVERYTHING = frozenset(Observation)
BATCH, LENGTH = 3, 20


def tokens(seed: int) -> Tensor:
    return torch.randint(258, (BATCH, LENGTH), generator=torch.Generator().manual_seed(seed))


def random_model(name: str, dtype: torch.dtype) -> Any:
    model = tiny_model(ARCHITECTURES[name]).to(dtype)
    unfuse(model)
    return model


def assert_as_differentiated(
    statistics: dict[str, GroupStatistics], truth: Differentiated, model: Any, tolerance: float
) -> None:
    """Compare all moments and gradients with float64 sums over every token."""

    def close(found: Tensor, expected: Tensor) -> None:
        scale = expected.abs().max().clamp_min(1e-300)
        assert (found - expected).abs().max() <= tolerance * scale

    for group in statistics.values():
        for name, moment in group.gradient_moments.items():
            if name not in truth.gradients:
                assert group.rows == 0
                continue
            weight, g = model.get_submodule(name).weight.detach().double(), truth.gradients[name]
            g = g.double()
            rows = g if weight.shape[0] <= weight.shape[1] else g @ weight
            close(moment, rows.T @ rows)
            close(group.gradient_squares[name], g.square().sum(0))
            x = truth.inputs[name].flatten(0, -2).double()
            kept, values = (
                (group.inputs, x)
                if group.inputs is not None
                else (group.outputs[name], x @ weight.T)
            )
            assert kept.count == len(x) == group.rows
            close(kept.covariance(), torch.cov(values.T, correction=0).reshape(kept.scatter.shape))
            close(kept.mean(), values.mean(0))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_agrees_with_autograd(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    model = random_model(name, dtype)
    statistics, (loss,) = swept(sweep(model, [tokens(0)], EVERYTHING))
    truth = Differentiated(random_model(name, torch.float64), tokens(0))
    assert loss == pytest.approx(truth.loss, rel=tolerance)
    assert_as_differentiated(statistics, truth, model, tolerance)

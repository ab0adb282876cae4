"""Sweeps give the statistics of automatic differentiation, for every architecture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.calibration import Differentiated, sweep, swept
from tests.fixtures.models import ARCHITECTURES, tiny_llama_config, tiny_model
from workers.compression.statistics import GRADIENTS, GroupStatistics, Observation, Observations
from workers.compression.unfuse import unfuse
from workers.sweeps.calibration import CalibrationSweep
from workers.sweeps.passes import Kind, Pass, Sweeps

EVERYTHING = frozenset(Observation)
BATCH, LENGTH = 3, 20
BLOCKS = 5


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


def deep_model() -> Any:
    return tiny_model(tiny_llama_config(num_hidden_layers=BLOCKS))


def assert_identical(one: dict[str, GroupStatistics], other: dict[str, GroupStatistics]) -> None:
    """Bit for bit: moments, sums and counts."""
    assert one.keys() == other.keys()
    assert len(one) == BLOCKS * 4
    for name, ours in one.items():
        theirs = other[name]
        assert (ours.rows, ours.tokens) == (theirs.rows, theirs.tokens)
        pairs = list(zip(tensors(ours), tensors(theirs), strict=True))
        assert pairs
        assert all(torch.equal(*pair) for pair in pairs)


def tensors(statistics: GroupStatistics) -> Iterator[Tensor]:
    moments = [statistics.inputs, *statistics.outputs.values()]
    yield from (each.scatter for each in moments if each is not None)
    yield from (each.average for each in moments if each is not None)
    if statistics.magnitudes is not None:
        yield statistics.magnitudes
    for sums in statistics.sums():
        yield from sums.values()


@pytest.mark.parametrize("keep_every", [2, 3, 5])
def test_hidden_states_that_are_computed_again_or_in_files_change_nothing(
    keep_every: int, tmp_path: Path
) -> None:
    model, batches = deep_model(), [tokens(0), tokens(1)]
    plain, losses = swept(sweep(model, batches, EVERYTHING))
    again, same_losses = swept(
        sweep(
            model,
            batches,
            EVERYTHING,
            keep_every=keep_every,
            memory_bytes=3 * BATCH * LENGTH * 32 * 4,  # of three hidden states
            folder=tmp_path / "boundaries",
        )
    )
    assert (tmp_path / "boundaries").is_dir()  # which the first file makes
    assert losses == same_losses
    assert_identical(plain, again)


def made(calibration: CalibrationSweep, passes: Iterable[Pass]) -> dict[str, GroupStatistics]:
    """The statistics that these passes complete."""
    statistics: dict[str, GroupStatistics] = {}
    for each in passes:
        match each.kind:
            case Kind.FORWARD:
                statistics |= calibration.forward(each.block)
            case Kind.LOSS:
                calibration.loss()
            case Kind.BACKWARD:
                statistics |= calibration.backward(each.block)
    return statistics


@pytest.mark.parametrize(
    "observations", [EVERYTHING, EVERYTHING - GRADIENTS], ids=["there and back", "there only"]
)
def test_a_sweep_goes_on_at_a_boundary_as_if_it_had_never_stopped(
    observations: Observations,
) -> None:
    model, batches, boundary = deep_model(), [tokens(0), tokens(1)], 3
    whole, _ = swept(sweep(model, batches, observations))
    first, second = (sweep(model, batches, observations) for _ in range(2))
    gradients = bool(observations & GRADIENTS)
    passes = Sweeps(BLOCKS, gradients)
    stop = [passes.reached(each) for each in passes.all].index(boundary) + 1
    statistics = made(first, passes.all[:stop])
    second.resume(boundary, [first.state(boundary, index) for index in range(2)])
    unsolved = range(boundary) if gradients else range(boundary, BLOCKS)
    rest = passes.remaining(unsolved, loss_known=gradients, boundary=boundary)
    assert len(rest) < len(passes.all)
    assert_identical(whole, statistics | made(second, rest))

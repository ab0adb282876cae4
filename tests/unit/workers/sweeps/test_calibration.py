"""Sweeps give the statistics of automatic differentiation, for every architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fixtures.calibration import Differentiated, sweep, swept
from tests.fixtures.models import ARCHITECTURES, tiny_llama_config, tiny_model
from workers.compression.statistics import GroupStatistics, Observation, merged
from workers.compression.unfuse import unfuse
from workers.sweeps.boundaries import held

EVERYTHING = frozenset(Observation) - {Observation.BOTH_SIDES}
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


def deep_model() -> Any:
    return tiny_model(tiny_llama_config(num_hidden_layers=5)).double()


def exact(statistics: dict[str, GroupStatistics]) -> dict[str, Tensor]:
    """Every tensor of the statistics, by a name of its own."""
    return {
        f"{group}/{name}": tensor
        for group, each in statistics.items()
        for name, tensor in {
            **{
                f"{kind}/{layer}": value
                for kind, sums in enumerate(each.sums())
                for layer, value in sums.items()
            },
            **{
                f"moments/{layer}": moments.scatter
                for layer, moments in {**each.outputs, "": each.inputs}.items()
                if moments
            },
        }.items()
    }


def assert_identical(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("keep_every", [2, 3, 5])
@pytest.mark.parametrize("memory_bytes", [1 << 30, 40_000, 0])
def test_segments_and_files_change_no_bit(
    tmp_path: Path, keep_every: int, memory_bytes: int
) -> None:
    batches = [tokens(0), tokens(1)]
    expected, losses = swept(sweep(deep_model(), batches, EVERYTHING))
    calibration = sweep(
        deep_model(),
        batches,
        EVERYTHING,
        keep_every=keep_every,
        memory_bytes=memory_bytes,
        folder=tmp_path / "boundaries",
    )
    found, again = swept(calibration)
    assert losses == again
    assert_identical(exact(expected), exact(found))


@pytest.mark.parametrize("keep_every", [1, 2, 3, 5])
def test_no_more_boundaries_are_held_than_is_said(keep_every: int) -> None:
    batches = [tokens(0)]
    calibration = sweep(deep_model(), batches, EVERYTHING, keep_every=keep_every)
    most, store = 0, calibration._boundaries
    put = store.put

    def counted(key: Any, tensor: Tensor) -> None:
        nonlocal most
        put(key, tensor)
        hidden = [key for key in store._held if isinstance(key, tuple) and key[0] != "gradient"]
        most = max(most, len(hidden))

    store.put = counted  # type: ignore[method-assign]
    swept(calibration)
    assert most <= held(5, keep_every) + 1


@pytest.mark.parametrize("boundary", [4, 2, 1])
def test_a_sweep_goes_on_at_any_boundary(boundary: int) -> None:
    batches = [tokens(0), tokens(1)]
    expected, _ = swept(sweep(deep_model(), batches, EVERYTHING))
    first = sweep(deep_model(), batches, EVERYTHING)
    for number in range(5):
        first.forward(number)
    first.loss()
    for number in range(4, boundary - 1, -1):
        first.backward(number)
    states = [first.state(boundary, index).clone() for index in range(2)]
    second = sweep(deep_model(), batches, EVERYTHING)
    found: dict[str, GroupStatistics] = {}
    second.resume(boundary, states)
    for number in range(boundary - 1):
        second.forward(number)
    for number in range(boundary - 1, -1, -1):
        found |= second.backward(number)
    done = exact(expected)
    assert_identical({name: done[name] for name in exact(found)}, exact(found))
    assert {name for name in done if int(name.split(".")[2]) < boundary} == exact(found).keys()


def test_a_sweep_without_gradients_goes_on_at_any_boundary() -> None:
    batches, observations = [tokens(0), tokens(1)], frozenset({Observation.MOMENTS})
    expected, losses = swept(sweep(deep_model(), batches, observations))
    first = sweep(deep_model(), batches, observations)
    for number in range(3):
        first.forward(number)
    states = [first.state(3, index).clone() for index in range(2)]
    second = sweep(deep_model(), batches, observations)
    found: dict[str, GroupStatistics] = {}
    second.resume(3, states)
    for number in (3, 4):
        found |= second.forward(number)
    assert second.loss() == losses
    assert_identical({name: exact(expected)[name] for name in exact(found)}, exact(found))


def test_shards_of_several_workers_add_up_to_one_workers_statistics() -> None:
    whole, losses = swept(sweep(deep_model(), [tokens(0), tokens(1)], EVERYTHING))
    one, first = swept(sweep(deep_model(), [tokens(0)], EVERYTHING))
    other, second = swept(sweep(deep_model(), [tokens(1)], EVERYTHING))
    assert first + second == losses
    for name, statistics in whole.items():
        total = merged([one[name], other[name]])
        for left, right in zip(
            exact({name: statistics}).values(), exact({name: total}).values(), strict=True
        ):
            torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-12)


def test_masks_and_positions_of_equal_batches_are_shared() -> None:
    calibration = sweep(deep_model(), [tokens(0), tokens(1), tokens(2)[:, :7]], EVERYTHING)
    one, other, shorter = calibration._calls
    assert one is other
    assert one is not shorter


def test_a_worker_without_sequences_has_empty_statistics() -> None:
    statistics, losses = swept(sweep(deep_model(), [], EVERYTHING))
    assert losses == []
    assert len(statistics) == 5 * 4
    assert all(each.rows == each.tokens == 0 for each in statistics.values())

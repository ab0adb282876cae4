"""Steps take the times that an attempt counts: groups are solved while others are calibrated."""

from __future__ import annotations

import pytest

from bench.scale import CONFIGURATIONS, SPEC, cluster
from service.domain.costs.cluster import Cost
from service.domain.costs.machines import cluster_of
from service.domain.costs.shapes import model_shapes
from service.domain.costs.steps import step_costs
from service.domain.costs.times import curves, step_times
from service.domain.placement import Placement
from service.domain.prediction import Prediction
from service.domain.states import Step
from workers.sweeps.passes import Kind, Sweeps

LLAMA = model_shapes(CONFIGURATIONS["Llama-2-7B"])
BLOCKS = len(LLAMA.blocks)
COSTS = step_costs(LLAMA, SPEC, cluster(1))
TIMES = step_times(LLAMA, COSTS, cluster(1))


def test_most_of_solving_passes_while_calibrating() -> None:
    alone = {step: cost.whole_seconds(cluster(1)) for step, cost in COSTS.items()}
    together = TIMES[Step.CALIBRATE].seconds + TIMES[Step.SOLVE].seconds
    assert together == pytest.approx(alone[Step.CALIBRATE] + alone[Step.SOLVE])
    assert TIMES[Step.SOLVE].seconds == pytest.approx(alone[Step.SOLVE] / BLOCKS)
    for step in set(Step) - {Step.CALIBRATE, Step.SOLVE}:
        assert TIMES[step].seconds == alone[step]


def test_the_resource_is_that_of_the_longer_one() -> None:
    costs = dict(COSTS) | {Step.SOLVE: Cost(network_moved=1e15)}
    times = step_times(LLAMA, costs, cluster(1))
    assert times[Step.CALIBRATE].waits_for == times[Step.SOLVE].waits_for == "network"
    assert TIMES[Step.CALIBRATE].waits_for == "arithmetic"


def test_the_passes_there_are_the_first_units_and_less_than_half_of_the_time() -> None:
    ((units, time),) = curves(LLAMA, SPEC, cluster(1), TIMES)[Step.CALIBRATE]
    passes = Sweeps(BLOCKS, gradients=True).all
    there = [each for each in passes if each.kind is not Kind.BACKWARD]
    assert units == len(there) / len(passes)
    assert passes[: len(there)] == there
    assert time == pytest.approx(0.07, abs=0.01)  # statistics and solving take most of it
    core = cluster_of(Placement(1, 1, 0), [])
    ((_, on_cpu),) = curves(
        LLAMA, SPEC, core, step_times(LLAMA, step_costs(LLAMA, SPEC, core), core)
    )[Step.CALIBRATE]
    assert on_cpu == pytest.approx(0.25, abs=0.01)  # one of four passes, which are most of it


def test_without_passes_back_all_passes_are_equal() -> None:
    spec = SPEC.model_copy(update={"method": "afm"})
    assert Step.CALIBRATE not in curves(LLAMA, spec, cluster(1), TIMES)


def test_what_has_been_solved_before_the_step_is_no_progress_of_it() -> None:
    found = Prediction(Placement(1, 1, 0), "1", curves=curves(LLAMA, SPEC, cluster(1), TIMES))
    before = (BLOCKS - 1) / BLOCKS
    assert found.share_of_time(Step.SOLVE, before) == 0
    assert found.share_of_time(Step.SOLVE, (1 + before) / 2) == pytest.approx(0.5)
    assert found.share_of_time(Step.SOLVE, 1) == 1
    assert found.share_of_time(Step.PROVE, 0.3) == pytest.approx(0.3)


@pytest.mark.parametrize("blocks", [1, 2])
def test_a_model_of_few_blocks(blocks: int) -> None:
    small = model_shapes(CONFIGURATIONS["Llama-2-7B"] | {"num_hidden_layers": blocks})
    core = cluster_of(Placement(1, 1, 0), [])
    times = step_times(small, step_costs(small, SPEC, core), core)
    prediction = Prediction(Placement(1, 1, 0), "1", curves=curves(small, SPEC, core, times))
    for step in (Step.CALIBRATE, Step.SOLVE):
        shares = [prediction.share_of_time(step, units / 10) for units in range(11)]
        assert shares == sorted(shares)
        assert shares[-1] == 1

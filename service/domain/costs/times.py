"""How long the steps of an attempt take, by the cost model: as the attempt counts them.

Groups of layers are solved while others are calibrated. So most of the time for solving passes in
CALIBRATE, and SOLVE is what is left after the last pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from service.domain.costs.cluster import Cluster, Cost
from service.domain.costs.formulas import GRADIENTS, OBSERVED, forward_operations
from service.domain.costs.shapes import Model
from service.domain.prediction import Curve
from service.domain.spec.job import JobSpec
from service.domain.states import Step


@dataclass(frozen=True)
class StepTime:
    """The seconds of a step, and the resource that it waits for."""

    seconds: float
    waits_for: str


def step_times(model: Model, costs: Mapping[Step, Cost], cluster: Cluster) -> dict[Step, StepTime]:
    """The time of every step of these costs."""
    times = {step: _slowest(cost, cluster) for step, cost in costs.items()}
    calibrating, solving = times[Step.CALIBRATE], times[Step.SOLVE]
    last = solving.seconds / len(model.blocks)  # the groups that the last pass completes
    waits_for = max(calibrating, solving, key=lambda each: each.seconds).waits_for
    sweeping = StepTime(calibrating.seconds + solving.seconds - last, waits_for)
    return times | {Step.CALIBRATE: sweeping, Step.SOLVE: StepTime(last, solving.waits_for)}


def curves(
    model: Model, spec: JobSpec, cluster: Cluster, times: Mapping[Step, StepTime]
) -> dict[Step, Curve]:
    """The curves of the steps whose units take unequal times.

    Passes there only compute hidden states; without passes back all passes are equal. Of the groups
    that are solved, those of all blocks but one have been solved before the step begins.
    """
    before = (len(model.blocks) - 1) / len(model.blocks)
    found: dict[Step, Curve] = {Step.SOLVE: ((before, 0.0),)}
    seconds = times[Step.CALIBRATE].seconds
    if OBSERVED[spec.method] & GRADIENTS and seconds:
        there = _there(model, spec, cluster)
        found[Step.CALIBRATE] = ((there[0], min(1.0, there[1] / seconds)),)
    return found


def _there(model: Model, spec: JobSpec, cluster: Cluster) -> tuple[float, float]:
    """The share of the passes that go there or compute the loss, and their seconds."""
    length = spec.calibration.sequence_length
    tokens = -(-spec.calibration.sequences // cluster.workers) * length
    forward = sum(forward_operations(block, length) for block in model.blocks)
    head = 4 * model.hidden * model.vocabulary
    single = spec.mixed_precision == "no" and not cluster.gpus
    flops = cluster.float32_flops if single else cluster.model_flops
    seconds = tokens * (forward + head) / (flops * cluster.products_share)
    return (len(model.blocks) + 1) / (2 * len(model.blocks) + 1), seconds


def _slowest(cost: Cost, cluster: Cluster) -> StepTime:
    by_resource = cost.seconds(cluster)
    waits_for = max(by_resource, key=by_resource.__getitem__)
    return StepTime(cost.whole_seconds(cluster), waits_for)

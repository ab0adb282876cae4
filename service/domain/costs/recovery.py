"""What recovery costs: teaching once, and for each target the steps and their checks.

Formulas on shapes, as in `service.domain.costs.steps`, which follow `workers.attempt.recovery`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from service.domain.costs.cluster import Cluster, Cost
from service.domain.costs.formulas import backward_operations, forward_operations, gram_operations
from service.domain.costs.shapes import Linear, Model
from service.domain.recovery_plan import batches_to_train, steps_between_checks
from service.domain.spec import JobSpec, Recovery

MOMENTS_OF_STEP = 6
"""How often a step reads or writes each number in training: value, gradient, Adam's two means."""
KEPT_FOR_TRAINING = 5
"""How many numbers are kept for each in training: its value, the best one so far, Adam's two means,
and a new value while a step is taken."""
NARROW = 1.6
"""How much longer the products of a step take than as many operations of a calibration: factors are
narrow, and their weights are cast for each. It was fitted to the job of docs/recovery.md."""
CALLS_OF_A_BLOCK = 4
"""The calls that a step makes of a worker for each block: there and back, factors and steps."""


@dataclass(frozen=True)
class Steps:
    """The steps of a recovery; each batch is shared by some of the workers."""

    count: int
    checks: int
    active: int
    share: int  # sequences of a batch, of the largest share
    aside: int  # sequences, of the largest share


def steps_of(recovery: Recovery, sequences: int, workers: int) -> Steps:
    """Of a calibration of so many sequences."""
    size = recovery.batch_size
    batches = batches_to_train(sequences, size)
    count, active = recovery.epochs * batches, min(workers, size)
    aside = sequences - batches * size
    return Steps(
        count,
        1 + -(-count // steps_between_checks(count)),
        active,
        -(-size // active),
        -(-aside // active),
    )


def rank_of(layer: Linear, keep: float) -> float:
    """The rank at which a layer has this fraction of its weights."""
    sides = layer.outputs + layer.inputs
    return (sides - math.sqrt(sides * sides - 4 * keep * layer.weights)) / 2


def recovery_cost(model: Model, spec: JobSpec, cluster: Cluster, keeps: Sequence[float]) -> Cost:
    """Of the worker with the largest share, beside what it holds of the calibration.

    `keeps` are the fractions of the targets that are recovered.
    """
    if spec.recovery is None or not keeps:
        return Cost()
    length, weight = spec.calibration.sequence_length, cluster.number_bytes(model)
    steps = steps_of(spec.recovery, spec.calibration.sequences, cluster.workers)
    tokens, head = steps.share * length, 2 * model.hidden * model.vocabulary
    taught = -(-spec.calibration.sequences // steps.active) * length
    forward = sum(forward_operations(block, length) for block in model.blocks)
    backward = sum(backward_operations(block, length) for block in model.blocks)
    inside = model.inside * model.stored_bytes
    total = Cost(
        model_operations=taught * forward,
        float32_operations=taught * _moments(model),
        decompositions=_cubes(model) / cluster.workers,
        loaded=inside,
        calls=len(model.blocks),
        host_held=4 * _squares(model) / cluster.workers,
        device_held=taught * model.hidden * weight,
    )
    for keep in keeps:
        trained = _trained(model, keep)
        less = 2 * (model.linear - trained)  # of a product with every weight
        there = forward - less
        step = tokens * (2 * there + backward - less + 2 * trained + 3 * head)
        checked = steps.aside * length * (there + 2 * head)
        sent = 3 * 4 * trained * (1 - 1 / cluster.workers)
        total += Cost(
            model_operations=NARROW * (steps.count * step + steps.checks * checked),
            float32_operations=steps.count * _coordinates(model, keep) / cluster.workers,
            memory_moved=steps.count
            * (4 * MOMENTS_OF_STEP * trained / cluster.workers + 3 * 4 * trained),
            calls=steps.count * CALLS_OF_A_BLOCK * len(model.blocks),
            network_moved=steps.count * sent * cluster.remote_share,
            host_held=4 * (KEPT_FOR_TRAINING * trained + _squares(model)) / cluster.workers,
            device_held=taught * model.hidden * weight
            + len(model.blocks) * tokens * model.hidden * weight,
        )
    return total


def _trained(model: Model, keep: float) -> float:
    """The numbers of all factors."""
    return sum(
        group.copies * rank_of(layer, keep) * (layer.outputs + layer.inputs)
        for block in model.blocks
        for group in block.groups
        for layer in group.layers
    )


def _moments(model: Model) -> float:
    """Operations for the moments of all inputs of a token."""
    return sum(
        group.active * gram_operations(group.inputs) for b in model.blocks for group in b.groups
    )


def _squares(model: Model) -> float:
    """The numbers of matrices of all inputs."""
    return sum(group.copies * group.inputs**2 for b in model.blocks for group in b.groups)


def _cubes(model: Model) -> float:
    """Operations of their decompositions."""
    return sum(group.copies * group.inputs**3 for b in model.blocks for group in b.groups)


def _coordinates(model: Model, keep: float) -> float:
    """Operations of taking gradients to other coordinates, and changes back."""
    return sum(
        group.copies * 4 * rank_of(layer, keep) * layer.inputs**2
        for block in model.blocks
        for group in block.groups
        for layer in group.layers
    )

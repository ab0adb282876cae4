"""What recovery costs: teaching once, and for each target the steps and their checks.

Formulas on shapes, as in `service.domain.costs.steps`, which follow `workers.attempt.recovery`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from service.domain.costs.cluster import Cluster, Cost
from service.domain.costs.formulas import (
    GROUP_SIZES,
    backward_operations,
    forward_operations,
    gram_operations,
)
from service.domain.costs.shapes import Linear, Model
from service.domain.recovery_plan import (
    batches_to_observe,
    batches_to_train,
    steps_between_checks,
)
from service.domain.spec.calibration import Recovery
from service.domain.spec.job import JobSpec

MOMENTS_OF_STEP = 6
"""How often a step reads or writes each number in training: value, gradient, Adam's two means."""
KEPT_FOR_TRAINING = 5
"""How many numbers are kept for each in training: its value, the best one so far, Adam's two means,
and a new value while a step is taken."""
NARROW = 1.6
"""How much longer the products of a step take than as many operations of a calibration: factors are
narrow, and their weights are cast for each. It was fitted to one job, like that of
docs/recovery.md."""
BYTES_OF_INTEGER = 60
"""What a step reads and writes for each integer of a layer: its weight is made three times, in
float32, and the gradient of a scale is summed up from those of its weights."""
CALLS_OF_A_BLOCK = 4
"""The calls that a step makes of a worker for each block: there and back, layers and steps."""


@dataclass(frozen=True)
class Steps:
    """The steps of a recovery; each batch is shared by some of the workers."""

    count: int
    checks: int
    active: int
    share: int  # sequences of a batch, of the largest share
    aside: int  # sequences, of the largest share


def steps_of(recovery: Recovery, sequences: int, workers: int) -> Steps:
    """Of so many sequences."""
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


@dataclass(frozen=True)
class _Trained:
    """What a target's training deals with, over all layers."""

    numbers: float  # that are trained
    weights: float  # of the products with a token
    coordinates: float  # operations of taking gradients to other coordinates, and changes back
    read: float  # bytes that a step reads and writes to make weights, and gradients from theirs
    sent: float  # bytes that each step takes from the owners to a worker that owns none, and back


def _in_ranks(model: Model, keep: float) -> _Trained:
    numbers = _factors(model, keep)
    return _Trained(numbers, numbers, _coordinates(model, keep), 12 * numbers, 12 * numbers)


def _in_bits(model: Model) -> _Trained:
    numbers = model.linear / GROUP_SIZES[0]
    sent = 2 * model.linear + 12 * numbers  # integers there twice, scales there and back
    return _Trained(numbers, model.linear, 0, BYTES_OF_INTEGER * model.linear, sent)


def recovery_cost(
    model: Model, spec: JobSpec, cluster: Cluster, keeps: Sequence[float | None]
) -> Cost:
    """Of the worker with the largest share, beside what it holds of the calibration.

    `keeps` are the fractions of the targets that are recovered; None is one in bits.
    """
    if spec.recovery is None or not keeps:
        return Cost()
    length, weight = spec.calibration.sequence_length, cluster.number_bytes(model)
    sequences = spec.recovery.asked(spec.calibration)
    steps = steps_of(spec.recovery, sequences, cluster.workers)
    tokens, head = steps.share * length, 2 * model.hidden * model.vocabulary
    taught = -(-sequences // steps.active) * length
    forward = sum(forward_operations(block, length) for block in model.blocks)
    backward = sum(backward_operations(block, length) for block in model.blocks)
    total = Cost(
        model_operations=taught * forward,
        loaded=model.inside * model.stored_bytes,
        calls=len(model.blocks),
        device_held=taught * model.hidden * weight,
    )
    squares = 0.0
    if any(keep is not None for keep in keeps):
        widest = max(group.inputs for block in model.blocks for group in block.groups)
        batches = batches_to_observe(widest, spec.recovery.batch_size, length)
        squares = _squares(model)
        total += Cost(
            float32_operations=min(taught, batches * tokens) * _moments(model),
            decompositions=_cubes(model) / cluster.workers,
            host_held=4 * squares / cluster.workers,
        )
    for keep in keeps:
        trained = _in_bits(model) if keep is None else _in_ranks(model, keep)
        less = 2 * (model.linear - trained.weights)  # of a product with every weight
        there = forward - less
        step = tokens * (2 * there + backward - less + 2 * trained.weights + 3 * head)
        checked = steps.aside * length * (there + 2 * head)
        owned = trained.numbers / cluster.workers
        total += Cost(
            model_operations=NARROW * (steps.count * step + steps.checks * checked),
            float32_operations=steps.count * trained.coordinates / cluster.workers,
            memory_moved=steps.count * (4 * MOMENTS_OF_STEP * owned + trained.read),
            calls=steps.count * CALLS_OF_A_BLOCK * len(model.blocks),
            network_moved=steps.count
            * trained.sent
            * (1 - 1 / cluster.workers)
            * cluster.remote_share,
            host_held=4 * (KEPT_FOR_TRAINING * owned + squares / cluster.workers),
            device_held=taught * model.hidden * weight
            + len(model.blocks) * tokens * model.hidden * weight,
        )
    return total


def _factors(model: Model, keep: float) -> float:
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

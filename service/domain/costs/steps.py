"""Predicts what a job costs: operations, bytes moved and memory, per step and worker.

Plain formulas on shapes, without torch. Each follows what the engine does, and a test compares it
with the engine's own code or with a tiny model. Times are a roofline: a step takes as long as its
slowest resource, for arithmetic overlaps with reading and with the network. Left out are tasks of
the evaluation, decoding speed, the activations' memory traffic, latencies and start-up.
"""

from __future__ import annotations

import math

from service.domain.costs.cluster import Cluster, Cost
from service.domain.costs.formulas import (
    GRADIENTS,
    OBSERVED,
    backward_operations,
    block_statistics,
    forward_operations,
    held,
    recomputed,
    solution_bytes,
    solve_operations,
    statistics_numbers,
    statistics_operations,
    stride,
)
from service.domain.costs.shapes import Block, Group, Linear, Model
from service.domain.spec import JobSpec, QualityTarget, SizeTarget
from service.domain.states import Step

LOGITS_BYTES = 3 * (64 << 20)  # the logits of a chunk, their probabilities, the gradient
PIECES_KEPT = 2  # stored tensors that stay in the host's memory while groups are solved
SOLVES_AT_ONCE = 2  # one runs, and one has its shards fetched
SHARE_OF_FREE_MEMORY = 0.5
PROBES_PER_QUALITY = 8
STATISTICS_TOUCHES = 8
"""How often an update reads or writes each number of the statistics: product, mirror image, the
correction of the mean, the sum."""
SOLVING_SQUARES = 8
"""How many float64 matrices of a layer's smaller side solving holds, its workspace included."""


def step_costs(model: Model, spec: JobSpec, cluster: Cluster) -> dict[Step, Cost]:
    """The cost of every step, for the worker with the largest share.

    CALIBRATE and SOLVE take turns on a worker: add their costs. A target that is a quality
    counts as one of full rank.
    """
    return _Prediction(model, spec, cluster).steps()


def activations(block: Block) -> int:
    """The numbers that a token's backward pass needs: about the layers' inputs and outputs."""
    return sum(
        group.active * (group.inputs + sum(layer.outputs for layer in group.layers))
        for group in block.groups
    )


class _Prediction:
    """The costs of one job."""

    def __init__(self, model: Model, spec: JobSpec, cluster: Cluster) -> None:
        self._model, self._spec, self._cluster = model, spec, cluster
        self._length = spec.calibration.sequence_length
        sequences = -(-spec.calibration.sequences // cluster.workers)  # of the largest share
        self._tokens = sequences * self._length
        self._batches = -(-sequences // spec.calibration.batch_size)
        self._batch_tokens = min(sequences, spec.calibration.batch_size) * self._length
        self._weight_bytes = cluster.number_bytes(model)
        self._stored = model.parameters * model.stored_bytes
        self._gradients = bool(OBSERVED[spec.method] & GRADIENTS)
        self._keeps = [self._keep(target) for target in spec.targets]
        self._artifacts = sum(self._artifact(keep) for keep in self._keeps)

    def steps(self) -> dict[Step, Cost]:
        spec, cluster, stored = self._spec, self._cluster, self._stored
        targets, together = len(self._keeps), cluster.workers_per_machine
        fetched = 0 if spec.model.source == "local" else stored / together
        whole = self._model.parameters * self._weight_bytes
        own = -(-targets // cluster.workers) * self._artifacts / targets
        writers = min(targets, together) / together  # each writer of a machine counts in part
        measured = targets + 1 if spec.evaluation.enabled else 0
        qualities = sum(isinstance(target, QualityTarget) for target in spec.targets)
        probes = PROBES_PER_QUALITY * qualities + len(spec.evaluation.curve)
        low_rank = max(self._keeps) * self._model.linear
        return {
            Step.RESOLVE: Cost(loaded=stored, disk_moved=self._read(1), network_moved=fetched),
            Step.CALIBRATE: self._calibration(),
            Step.SOLVE: self._solving(),
            Step.ALLOCATE: self._measurement(probes + bool(qualities), low_rank * bool(probes)),
            Step.ASSEMBLE: Cost(
                float64_operations=self._factors(),
                loaded=2 * stored,
                disk_moved=self._read(2) + own * writers,
                network_moved=4 * low_rank * cluster.remote_share * writers,
                device_held=whole + low_rank * self._weight_bytes,
                files_held=own * writers,
            ),
            Step.PROVE: Cost(
                loaded=2 * own, disk_moved=2 * own * writers, host_held=self._largest * writers
            ),
            Step.EVALUATE: self._measurement(measured, 0),
            Step.PUBLISH: Cost(network_moved=own * writers, disk_moved=own * writers),
        }

    def _calibration(self) -> Cost:
        model, weight, number = self._model, self._weight_bytes, self._cluster.sum_bytes
        spacing, boundaries = self._boundaries()
        device, host = self._resident(boundaries)
        again = self._gradients * recomputed(len(model.blocks), spacing) / len(model.blocks)
        largest = max(model.blocks, key=lambda block: block.parameters)
        block_bytes = largest.parameters * weight
        statistics = [block_statistics(block, self._spec.method) for block in model.blocks]
        inside = (model.parameters - model.outside) * weight
        passes, sweeps = 1 + again + 3 * self._gradients, 1 + again + self._gradients
        in_model, in_float32 = self._operations(again)
        return Cost(
            model_operations=self._tokens * in_model,
            float32_operations=self._tokens * in_float32,
            memory_moved=self._batches
            * (passes * inside + STATISTICS_TOUCHES * number * sum(statistics)),
            loaded=sweeps * self._stored,
            disk_moved=self._read(sweeps),
            device_held=device
            + block_bytes * (1 if self._cluster.gpus else 2)
            + max(map(self._activations, set(model.blocks)))
            + LOGITS_BYTES,
            host_held=host,
            files_held=boundaries[2],
        )

    def _resident(self, boundaries: tuple[float, ...]) -> tuple[float, float]:
        """What stays on the device and in the host's memory from pass to pass: two blocks of
        statistics and boundaries; two blocks of weights, solutions, and shards for the owner."""
        model, cluster, method = self._model, self._cluster, self._spec.method
        groups = {group for block in model.blocks for group in block.groups}
        largest = max(block_statistics(block, method) for block in model.blocks)
        shard = max(statistics_numbers(group, method) for group in groups) * cluster.sum_bytes
        pieces = max(g.copies * max(la.weights for la in g.layers) for g in groups)
        block = max(block.parameters for block in model.blocks) * self._weight_bytes
        return (
            model.outside * self._weight_bytes + 2 * largest * cluster.sum_bytes + boundaries[0],
            boundaries[1]
            + 2 * block * cluster.gpus
            + self._solutions
            + SOLVES_AT_ONCE * cluster.workers * shard
            + PIECES_KEPT * pieces * model.stored_bytes,
        )

    @property
    def _solutions(self) -> float:
        """The bytes of the solutions of one worker's layers."""
        groups = [group for block in self._model.blocks for group in block.groups]
        bytes_of = {group: self._solved_bytes(group) for group in set(groups)}
        return sum(g.copies * bytes_of[g] for g in groups) / self._cluster.workers

    def _operations(self, again: float) -> tuple[float, float]:
        """The sweeps' operations per token, in the model's precision and in float32."""
        model = self._model
        in_model = (1 + self._gradients) * 2.0 * model.hidden * model.vocabulary
        in_float32 = 0.0
        for block in model.blocks:
            forward = forward_operations(block, self._length)
            in_model += forward * (1 + again)
            if self._gradients:
                in_model += forward + backward_operations(block, self._length)
            for group in block.groups:
                sided, single = statistics_operations(group, self._spec.method)
                in_model += group.active * sided
                in_float32 += group.active * single
        return in_model, in_float32

    def _solving(self) -> Cost:
        """Solving, with the shards' way to the owners and the checkpoints of solved groups."""
        model, spec, cluster = self._model, self._spec, self._cluster
        groups = [group for block in model.blocks for group in block.groups]
        distinct = set(groups)
        operations = {g: solve_operations(g) for g in distinct}
        decompositions, products = (
            max(sum(g.copies * operations[g][n] for g in groups) / cluster.workers, most)
            for n, most in enumerate(map(max, zip(*operations.values(), strict=True)))
        )
        shard = max(statistics_numbers(g, spec.method) for g in distinct) * cluster.sum_bytes
        _, boundaries = self._boundaries()
        device, host = self._resident(boundaries)
        # A stack of experts is read whole by each worker that owns one of them.
        read = sum(g.weights * g.copies * min(1, g.copies / cluster.workers) for g in groups)
        sent = sum(block_statistics(b, spec.method) for b in model.blocks) * cluster.sum_bytes
        working = max(
            SOLVING_SQUARES * max(la.smaller_side**2 for la in g.layers)
            + 2 * max(la.weights for la in g.layers)
            for g in distinct
        )
        return Cost(
            float64_operations=products,
            decompositions=decompositions,
            loaded=read * model.stored_bytes,
            network_moved=sent * cluster.remote_share + self._solutions,
            device_held=device + 8 * working + 2 * shard,
            host_held=host,
            files_held=boundaries[2],
        )

    def _measurement(self, models: int, low_rank: float) -> Cost:
        """Measuring perplexity, with the whole model in memory."""
        if not models:
            return Cost()
        model, evaluation = self._model, self._spec.evaluation
        sequences = evaluation.sequences + sum(
            dataset.sequences or evaluation.sequences for dataset in evaluation.datasets
        )
        tokens = sequences * self._length * models / self._cluster.workers
        forward = sum(forward_operations(block, self._length) for block in model.blocks)
        batch = self._spec.calibration.batch_size * self._length
        batches = math.ceil(tokens / batch)
        loads = -(-models // self._cluster.workers) + 1
        return Cost(
            model_operations=tokens * (forward + 2 * model.hidden * model.vocabulary),
            memory_moved=batches * model.parameters * self._weight_bytes,
            loaded=loads * self._stored,
            disk_moved=self._read(loads),
            network_moved=4 * low_rank * self._cluster.remote_share * models,
            device_held=(model.parameters + low_rank + batch * model.vocabulary)
            * self._weight_bytes,
        )

    def _boundaries(self) -> tuple[int, tuple[float, float, float]]:
        """How far apart they are kept, and the bytes of them on the device, in memory, in files."""
        model, cluster = self._model, self._cluster
        each = self._tokens * model.hidden * self._weight_bytes
        free = max(0, cluster.device_memory - model.outside * self._weight_bytes)
        tiers = [
            free * SHARE_OF_FREE_MEMORY if cluster.gpus else 0.0,
            cluster.host_memory * SHARE_OF_FREE_MEMORY / cluster.workers_per_machine,
            cluster.disk * SHARE_OF_FREE_MEMORY / cluster.workers_per_machine,
        ]
        spacing = stride(len(model.blocks), each, sum(tiers))
        left = float(each * (held(len(model.blocks), spacing) if self._gradients else 1))
        first = min(left, tiers[0])
        second = min(left - first, tiers[1])
        return spacing, (first, second, left - first - second)

    def _activations(self, block: Block) -> float:
        """What a batch's backward pass through a block needs, with float32 rows of a moment."""
        widest = max(max(g.inputs, *(la.outputs for la in g.layers)) for g in block.groups)
        return self._batch_tokens * (activations(block) * self._weight_bytes + 3 * 4 * widest)

    def _factors(self) -> float:
        """Truncating and interpolating the layers of all targets that one worker owns."""
        layers = [
            (g.copies, la) for block in self._model.blocks for g in block.groups for la in g.layers
        ]
        total = 0.0
        for keep in self._keeps:
            for copies, la in layers:
                rank = _rank(la, keep)
                each = 2 * la.weights * (la.smaller_side + 2 * rank)
                total += copies * (each + rank * rank * (la.outputs + la.inputs))
        return total / self._cluster.workers

    def _read(self, times: float) -> float:
        """Bytes from disk: a machine reads a file once for its workers, and again if it is too
        large for the page cache."""
        spare = self._cluster.host_memory * (1 - SHARE_OF_FREE_MEMORY)
        return (
            (times if self._stored > spare else 1)
            * self._stored
            / (self._cluster.workers_per_machine)
        )

    def _keep(self, target: SizeTarget | QualityTarget) -> float:
        """The fraction of the linear layers that a target keeps."""
        if isinstance(target, QualityTarget):
            return 1.0
        linear, whole = self._model.linear, self._model.parameters
        return target.keep if target.scope == "linear" else 1 - (1 - target.keep) * whole / linear

    def _artifact(self, keep: float) -> float:
        return self._stored - (1 - keep) * self._model.linear * self._model.stored_bytes

    @property
    def _largest(self) -> float:
        return max(map(self._artifact, self._keeps))

    def _solved_bytes(self, group: Group) -> int:
        method, number = self._spec.method, self._weight_bytes
        return sum(solution_bytes(layer, method, number) for layer in group.layers)


def _rank(layer: Linear, keep: float) -> float:
    """The rank at which a layer has this fraction of its weights."""
    sides = layer.outputs + layer.inputs
    return (sides - math.sqrt(sides * sides - 4 * keep * layer.weights)) / 2

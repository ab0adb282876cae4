"""Predicts what a job costs: operations, bytes moved and memory, per step and worker.

Plain formulas on shapes, without torch. Each follows what the engine does, and a test compares it
with the engine's own code or with a tiny model. Times are a roofline: a step takes as long as its
slowest resource, for arithmetic overlaps with reading and with the network. Left out are tasks of
the evaluation, the activations' memory traffic and latencies. The cache of low-rank layers counts
where it holds all of them, as it does for a small model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property

from service.domain.costs.cluster import (
    SHARE_FOR_A_MODEL,
    SHARE_FOR_HIDDEN_STATES,
    Cluster,
    Cost,
)
from service.domain.costs.formulas import (
    GRADIENTS,
    OBSERVED,
    backward_operations,
    block_statistics,
    forward_operations,
    held,
    recomputed,
    rounded_bytes,
    rounding_operations,
    solution_bytes,
    solve_operations,
    statistics_numbers,
    statistics_operations,
    stride,
)
from service.domain.costs.recovery import rank_of, recovery_cost
from service.domain.costs.shapes import NUMBER_BYTES, Block, Group, Linear, Model
from service.domain.spec.evaluation import HELD_OUT
from service.domain.spec.job import JobSpec
from service.domain.spec.sources import LocalPath, S3Prefix
from service.domain.spec.targets import (
    QualityTarget,
    SizeTarget,
    Target,
    bits_of,
    rounds_embeddings,
)
from service.domain.states import Step

LOGITS_BYTES = 3 * (64 << 20)  # the logits of a chunk, their probabilities, the gradient
EXPANDING_LOADS = 6  # of the checkpoint, as long as expanding a GGUF file takes
PIECES_KEPT = 2  # stored tensors that stay in the host's memory while groups are solved
SOLVES_AT_ONCE = 2  # one runs, and one has its shards fetched
BLOCKS_IN_FLIGHT = 2  # whose low-rank layers are sent while one block is measured
PREFETCHED_LAYERS = 4  # sent while a layer of an artifact is written
UPLOADED_BYTES = 10 * (8 << 20)  # the parts of a file that are uploaded at the same time
CACHED_BYTES = 1 << 30  # of low-rank layers that a worker made last
PROBES_PER_QUALITY = 8
WARM_UP_TOKENS = 4  # that a model generates before its speed is measured
CALLS_OF_STATISTICS = 3
"""How many calls of a block a batch's update of a group's statistics counts as."""
STATISTICS_TOUCHES = 8
"""How often an update reads or writes each number of the statistics: product, mirror image, the
correction of the mean, the sum."""
SOLVING_SQUARES = 8
"""How many float64 matrices of a layer's smaller side solving holds, its workspace included."""
FACTORING_MATRICES = 3
"""How many float64 matrices of a layer's shape truncating and interpolating it holds."""


def step_costs(model: Model, spec: JobSpec, cluster: Cluster) -> dict[Step, Cost]:
    """The cost of every step, for the worker with the largest share.

    CALIBRATE and SOLVE take turns on a worker: add their costs. A target that is a quality
    counts as one of full rank.
    """
    return _Prediction(model, spec, cluster).steps()


FIRST_USE_BYTES = 160e6
"""What a worker's libraries take once they are used, measured with small models by `bench.memory`:
a half by loading a model, the rest by products, decompositions and clients of the bucket."""

OBJECTS_BYTES = 0.3e6
"""A block's modules, hooks, names and calls in a worker, without any number of its weights."""

DRIVER_FIRST_USE_BYTES = 235e6
"""The same for the driver, most of it torch, which it imports with the first spectra."""

DRIVER_OBJECTS_BYTES = 0.15e6
"""A block's names, ranks and references in a driver."""

KEPT_IN_HEAPS = 0.65
"""The part of what a calibration frees that its worker's heaps keep, unless it returns matrices to
the system at once; see `workers.model.allocator`."""

HULL_ARRAYS = 8
"""How many numbers the allocation holds for each of a spectrum."""


def peak_worker_bytes(model: Model, spec: JobSpec, cluster: Cluster) -> float:
    """The most of the host's memory that a worker takes beyond its program.

    Hidden states and solutions fill their budgets at most. The proof has a process of its own.
    """
    prediction = _Prediction(model, spec, cluster)
    costs = prediction.steps()
    sweeping = max(costs.pop(step).in_host(cluster) for step in (Step.CALIBRATE, Step.SOLVE))
    later = max(cost.in_host(cluster) for step, cost in costs.items() if step is not Step.PROVE)
    held = max(sweeping, later + prediction.kept_in_heaps(sweeping))
    return FIRST_USE_BYTES + OBJECTS_BYTES * len(model.blocks) + held


def peak_driver_bytes(model: Model) -> float:
    """The most memory that a job's driver takes beyond its program.

    Of the tensors it holds the spectra alone.
    """
    groups = (group for block in model.blocks for group in block.groups)
    spectra = 8 * sum(g.copies * sum(la.smaller_side for la in g.layers) for g in groups)
    objects = DRIVER_OBJECTS_BYTES * len(model.blocks)
    return DRIVER_FIRST_USE_BYTES + objects + (1 + HULL_ARRAYS) * spectra


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
        evaluation = spec.evaluation
        self._texts = {HELD_OUT: evaluation.sequences} | {
            each.name: each.sequences or evaluation.sequences for each in evaluation.datasets
        }
        self._block_bytes = max(block.parameters for block in model.blocks) * self._weight_bytes
        self._logits = min(LOGITS_BYTES, 3 * 4 * model.vocabulary * self._length)

    def steps(self) -> dict[Step, Cost]:
        spec, stored, together = self._spec, self._stored, self._cluster.workers_per_machine
        fetched = 0 if spec.model.source == "local" else stored / together
        own, writers = self._written, self._writers
        generates = spec.evaluation.enabled and _generated_tokens(spec) > 0
        evaluated = self._measurement(
            self._keeps, self._texts, dense=True, makes=0 if self._all_cached else 1
        )
        costs = {
            Step.RESOLVE: Cost(
                loaded=stored * (1 + EXPANDING_LOADS * _is_gguf(spec)),
                disk_moved=self._read(1, stored),
                network_moved=fetched,
                starts=1,
            ),
            Step.CALIBRATE: self._calibration(),
            Step.SOLVE: self._solving(),
            Step.ALLOCATE: self._allocation(),
            Step.RECOVER: self._recovery(),
            Step.ASSEMBLE: self._assembly(),
            Step.PROVE: self._proof(),
            Step.EVALUATE: evaluated + self._decoding() if spec.evaluation.enabled else Cost(),
            Step.PUBLISH: Cost(
                loaded=own,  # and hashed
                network_moved=own * writers,
                disk_moved=own * writers,
                device_held=self._whole_model * generates,  # the last one stays
                host_held=min(own, UPLOADED_BYTES) * writers,
            ),
        }
        if spec.mixed_precision == "no" and not self._cluster.gpus:
            costs = {step: _in_float32(cost) for step, cost in costs.items()}
        return costs

    def kept_in_heaps(self, sweeping: float) -> float:
        """What stays of the bytes that the calibration held in the host's memory."""
        if self._cluster.gpus or self._cluster.worker_memory is not None:
            return 0.0
        return KEPT_IN_HEAPS * (sweeping - self._solutions_in_memory)

    def _calibration(self) -> Cost:
        model, weight, number = self._model, self._weight_bytes, self._cluster.sum_bytes
        spacing, boundaries = self._boundaries()
        device, host = self._resident(boundaries)
        again = self._gradients * recomputed(len(model.blocks), spacing) / len(model.blocks)
        statistics = [
            block_statistics(block, self._spec.method, self._spec.widths) for block in model.blocks
        ]
        inside = model.inside * weight
        passes, sweeps = 1 + again + 3 * self._gradients, 1 + again + self._gradients
        in_model, in_float32 = self._operations(again)
        return Cost(
            model_operations=self._tokens * in_model,
            float32_operations=self._tokens * in_float32,
            memory_moved=self._batches
            * (passes * inside + STATISTICS_TOUCHES * number * sum(statistics)),
            loaded=sweeps * self._inside_stored,
            calls=self._batches
            * (passes * len(model.blocks) + CALLS_OF_STATISTICS * len(self._groups)),
            disk_moved=self._read(sweeps, self._inside_stored) + 2 * boundaries[2],
            device_held=device
            + self._blocks_held
            + max(map(self._activations, set(model.blocks)))
            + self._logits,
            host_held=host,
            files_held=boundaries[2] + self._solutions_in_files,
        )

    def _resident(self, boundaries: tuple[float, ...]) -> tuple[float, float]:
        """What stays on the device and in the host's memory from pass to pass: two blocks of
        statistics and boundaries; two blocks of weights, solutions, and shards for the owner."""
        model, cluster, spec = self._model, self._cluster, self._spec
        method, widths = spec.method, spec.widths
        groups = {group for block in model.blocks for group in block.groups}
        largest = max(block_statistics(block, method, widths) for block in model.blocks)
        shard = (
            max(statistics_numbers(group, method, widths) for group in groups) * cluster.sum_bytes
        )
        pieces = max(g.copies * max(la.weights for la in g.layers) for g in groups)
        return (
            model.outside * self._weight_bytes + 2 * largest * cluster.sum_bytes + boundaries[0],
            boundaries[1]
            + 2 * self._block_bytes * cluster.gpus
            + self._solutions_in_memory
            + SOLVES_AT_ONCE * cluster.workers * shard
            + PIECES_KEPT * pieces * model.stored_bytes,
        )

    @property
    def _blocks_held(self) -> float:
        """The bytes of blocks where they are computed: on a CPU the next one is there already."""
        return self._block_bytes * (1 if self._cluster.gpus else 2)

    @property
    def _solutions_in_memory(self) -> float:
        return min(self._solutions, self._cluster.states_memory)

    @property
    def _solutions_in_files(self) -> float:
        return self._solutions - self._solutions_in_memory

    @property
    def _solutions(self) -> float:
        """The bytes of the solutions of one worker's layers."""
        groups = self._groups
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
                sided, single = statistics_operations(group, self._spec.method, self._spec.widths)
                in_model += group.active * sided
                in_float32 += group.active * single
        return in_model, in_float32

    def _solving(self) -> Cost:
        """Solving, with the shards' way to the owners and the checkpoints of solved groups."""
        model, spec, cluster = self._model, self._spec, self._cluster
        groups = self._groups
        distinct = set(groups)
        operations = {g: solve_operations(g) for g in distinct}
        decompositions, products = (
            max(sum(g.copies * operations[g][n] for g in groups) / cluster.workers, most)
            for n, most in enumerate(map(max, zip(*operations.values(), strict=True)))
        )
        widths, copies = spec.widths, {g: groups.count(g) * g.copies for g in distinct}
        rounding = sum(rounding_operations(g, widths) * copies[g] for g in distinct)
        numbers = max(statistics_numbers(g, spec.method, widths) for g in distinct)
        shard = numbers * cluster.sum_bytes
        _, boundaries = self._boundaries()
        device, host = self._resident(boundaries)
        statistics = sum(block_statistics(b, spec.method, widths) for b in model.blocks)
        sent = statistics * cluster.sum_bytes
        working = max(
            SOLVING_SQUARES * max(la.smaller_side**2 for la in g.layers)
            + 2 * max(la.weights for la in g.layers)
            for g in distinct
        )
        return Cost(
            float32_operations=rounding / cluster.workers,
            float64_operations=products,
            decompositions=decompositions,
            loaded=self._owned,
            disk_moved=self._solutions_in_files,
            network_moved=sent * cluster.remote_share + self._solutions,
            device_held=device + 8 * working + 2 * shard,
            host_held=host,
            files_held=boundaries[2] + self._solutions_in_files,
        )

    @property
    def _owned(self) -> float:
        """The stored bytes that a worker reads to have the weights of the layers it has solved.

        A stack of experts is read whole by each worker that owns one of them.
        """
        workers = self._cluster.workers
        read = sum(g.weights * g.copies * min(1, g.copies / workers) for g in self._groups)
        return read * self._model.stored_bytes

    def _allocation(self) -> Cost:
        """The sweeps that find sizes for qualities, and one for all sizes of the curve."""
        qualities = [each for each in self._spec.targets if isinstance(each, QualityTarget)]
        names = {target.dataset for target in qualities}
        total = self._measurement([], names, dense=True) if qualities else Cost()
        for target in qualities:
            for _ in range(PROBES_PER_QUALITY):
                total += self._measurement([1.0], {target.dataset}, dense=False)
        curve = self._spec.evaluation.curve
        return total + (self._measurement(curve, self._texts, dense=False) if curve else Cost())

    def _recovery(self) -> Cost:
        """Training the layers that are compressed."""
        keeps = [
            None if bits_of(target) else keep
            for keep, target in zip(self._keeps, self._spec.targets, strict=True)
        ]
        cost = recovery_cost(self._model, self._spec, self._cluster, keeps)
        if cost == Cost():
            return cost
        device, host = self._measuring(self._keeps[:1], outside=1)
        activations = max(map(self._activations, set(self._model.blocks)))
        return replace(
            cost,
            device_held=cost.device_held + device + activations + self._logits,
            host_held=cost.host_held + host,
            files_held=self._solutions_in_files,
        )

    def _measurement(
        self, keeps: Sequence[float], texts: Collection[str], *, dense: bool, makes: int = 1
    ) -> Cost:
        """Measuring compressed variants, and perhaps the dense model, by sweeps over the blocks.

        The variants are counted as dense in the arithmetic. `makes` is 0 if the low-rank layers
        have been made before.
        """
        model, cluster, size = self._model, self._cluster, self._spec.calibration.batch_size
        counts = [self._texts[name] for name in texts]
        batches = -(-sum(-(-count // size) for count in counts) // cluster.workers)
        tokens = min(sum(counts), batches * size) * self._length  # of the largest share
        variants, apart = len(keeps) + dense, bool(keeps) and dense and not self._exact
        sweeps, together = 1 + apart, len(keeps) if apart else variants
        states = self._spread(together * tokens * model.hidden * self._weight_bytes)
        forward = sum(forward_operations(block, self._length) for block in model.blocks)
        device, host = self._measuring(keeps, outside=1 + (not self._exact))
        layers = BLOCKS_IN_FLIGHT + 1
        return Cost(
            model_operations=tokens * variants * (forward + 2 * model.hidden * model.vocabulary),
            float64_operations=makes * sum(map(self._factors, keeps)),
            memory_moved=batches * variants * model.inside * self._weight_bytes,
            loaded=sweeps * self._inside_stored + makes * len(keeps) * self._owned,
            calls=batches * variants * len(model.blocks),
            disk_moved=self._read(sweeps, self._inside_stored)
            + 2 * states[2] * len(model.blocks)
            + len(keeps) * self._solutions_in_files,
            network_moved=4 * sum(keeps) * model.linear * self._fetched,
            device_held=device + states[0] + self._batch + self._logits,
            host_held=host
            + states[1]
            + layers * self._low_rank_block(keeps) / cluster.workers_per_machine,
            files_held=states[2] + self._solutions_in_files,
        )

    def _measuring(self, keeps: Sequence[float], *, outside: int) -> tuple[float, float]:
        """What a sweep over variants holds on the device and in the host's memory, beside hidden
        states: blocks and low-rank layers; solutions, and the last gradients of the calibration."""
        cluster, model = self._cluster, self._model
        each = self._tokens * model.hidden * self._weight_bytes * self._gradients
        gradients = self._spread(each)
        largest = max(la.weights for b in model.blocks for g in b.groups for la in g.layers)
        layers = self._low_rank_block(keeps)
        if self._artifact_bytes < 4:  # rounded copies; a CPU computes with one variant in float32
            layers *= 1 + self._artifact_bytes / 4
            layers += 0 if cluster.gpus else self._low_rank_block([max(keeps, default=0.0)])
        rounded = model.in_vocabulary * bool(self._rounding_targets)  # and multiplied out
        return (
            (outside * model.outside + rounded) * self._weight_bytes
            + self._blocks_held
            + layers
            + FACTORING_MATRICES * 8 * largest
            + gradients[0],
            2 * self._block_bytes * cluster.gpus
            + self._solutions_in_memory
            + min(CACHED_BYTES, cluster.states_memory, self._made + rounded)
            + PIECES_KEPT * rounded * model.stored_bytes
            + gradients[1],
        )

    def _assembly(self) -> Cost:
        """Writing artifacts, and a sweep over a few tokens of each, and of the dense model."""
        cluster, model, writers = self._cluster, self._model, self._writers
        mine, targets = -(-len(self._keeps) // cluster.workers), len(self._keeps)
        makes = 1 if self._all_cached else 2
        device, host = self._measuring([max(self._keeps)], outside=1 + (not self._exact))
        largest = max(la.weights for b in model.blocks for g in b.groups for la in g.layers)
        sent = 2 * 4 * max(self._keeps) * model.linear * mine * cluster.remote_share
        return Cost(
            float64_operations=makes * sum(map(self._factors, self._keeps)),
            loaded=mine * self._stored
            + (mine + 1) * self._inside_stored
            + makes * targets * self._owned,
            calls=(mine + 1) * len(model.blocks),
            disk_moved=self._read(mine + 1, self._stored)
            + self._written * writers
            + 2 * targets * self._solutions_in_files,
            network_moved=sent * writers,
            device_held=device,
            host_held=host + (PREFETCHED_LAYERS + 1) * 4 * largest,
            files_held=self._written * writers + self._solutions_in_files,
        )

    def _proof(self) -> Cost:
        """Comparing tensors, and loading whole models in a process of its own.

        What exceeds the memory for a model stays on the disk.
        """
        own, writers, cluster = self._written, self._writers, self._cluster
        largest = self._stored / self._model.stored_bytes * self._weight_bytes
        return Cost(
            loaded=2 * own + 2 * self._stored,
            starts=1,
            disk_moved=2 * (own + self._stored) * writers,
            host_held=self._solutions_in_memory
            + min(largest, cluster.whole_model_memory) * writers,
            files_held=own * writers + self._solutions_in_files,
        )

    def _decoding(self) -> Cost:
        """Loading every model whole, one after the other, and having it generate some tokens.

        A CPU holds less then than in the sweep before.
        """
        model, spec = self._model, self._spec
        tokens = _generated_tokens(spec)
        if not tokens:
            return Cost()
        artifacts = sum(map(self._artifact, self._keeps))
        parameters = model.parameters + artifacts / self._artifact_bytes
        return Cost(
            memory_moved=tokens * parameters * self._weight_bytes,
            loaded=self._stored + artifacts,
            calls=tokens * (1 + len(self._keeps)) * len(model.blocks),
            device_held=self._whole_model * self._cluster.gpus,
        )

    @property
    def _whole_model(self) -> float:
        """The bytes of a model that generates: a CPU multiplies low-rank layers out as well."""
        model, cluster = self._model, self._cluster
        if cluster.gpus:
            most = cluster.device_memory * SHARE_FOR_A_MODEL
            return min(model.parameters * self._weight_bytes, most)
        whole = (model.parameters + model.linear) * self._weight_bytes
        return min(whole, cluster.whole_model_memory)

    @property
    def _all_cached(self) -> bool:
        """Whether a worker keeps all low-rank layers that it makes, and makes none twice."""
        keeps = (*self._keeps, *self._spec.evaluation.curve)
        made = 4 * sum(keeps) * self._model.linear / self._cluster.workers
        return made <= min(CACHED_BYTES, self._cluster.states_memory)

    @property
    def _groups(self) -> list[Group]:
        return [group for block in self._model.blocks for group in block.groups]

    def _low_rank_block(self, keeps: Sequence[float]) -> float:
        """The bytes of a block's low-rank layers as they are sent, of all variants."""
        return 4 * sum(keeps) * max(block.linear for block in self._model.blocks)

    @property
    def _made(self) -> float:
        """The bytes of all low-rank layers that a worker makes."""
        return 4 * sum(self._keeps) * self._model.linear / self._cluster.workers

    @property
    def _fetched(self) -> float:
        """A worker's part of what its machine fetches once for all its workers."""
        return self._cluster.remote_share / self._cluster.workers_per_machine

    @property
    def _batch(self) -> float:
        """What a forward pass of a batch holds: the hidden state, and the widest layers' rows."""
        blocks = self._model.blocks
        widest = max(sum(la.outputs for la in g.layers) for b in blocks for g in b.groups)
        return self._batch_tokens * (2 * self._model.hidden + 2 * widest) * self._weight_bytes

    @property
    def _exact(self) -> bool:
        """Whether artifacts have the precision of the source, so that all share a sweep."""
        return self._spec.dtype in ("auto", self._model.dtype)

    @property
    def _artifact_bytes(self) -> int:
        """Of a number of an artifact."""
        auto = self._spec.dtype == "auto"
        return NUMBER_BYTES[self._model.dtype if auto else self._spec.dtype]

    @property
    def _written(self) -> float:
        """The bytes of the artifacts that one worker writes."""
        whole = map(self._artifact, self._keeps)
        average = (sum(whole) - self._saved * self._rounding_targets) / len(self._keeps)
        return -(-len(self._keeps) // self._cluster.workers) * average

    @property
    def _saved(self) -> float:
        """The bytes that a rounded embedding and output layer save."""
        model = self._model
        scales = model.in_vocabulary / model.hidden
        return (model.in_vocabulary - scales) * self._artifact_bytes - model.in_vocabulary

    @property
    def _rounding_targets(self) -> int:
        """How many targets round the embedding and the output layer."""
        return sum(map(rounds_embeddings, self._spec.targets))

    @property
    def _writers(self) -> float:
        """The part of a machine's workers that write artifacts."""
        together = self._cluster.workers_per_machine
        return min(len(self._keeps), together) / together

    def _boundaries(self) -> tuple[int, tuple[float, float, float]]:
        """How far apart they are kept, and the bytes of them on the device, in memory, in files."""
        blocks = len(self._model.blocks)
        each = self._tokens * self._model.hidden * self._weight_bytes
        spacing = stride(blocks, each, sum(self._tiers))
        return spacing, self._spread(each * (held(blocks, spacing) if self._gradients else 1))

    @property
    def _tiers(self) -> tuple[float, float, float]:
        return self._cluster.tiers(self._model.outside * self._weight_bytes)

    def _spread(self, states: float) -> tuple[float, float, float]:
        """The bytes of hidden states on the device, in memory, and in files."""
        device, memory, _ = self._tiers
        first = min(states, device)
        second = min(states - first, memory)
        return first, second, states - first - second

    def _activations(self, block: Block) -> float:
        """What a batch's backward pass through a block needs, with float32 rows of a moment."""
        widest = max(max(g.inputs, *(la.outputs for la in g.layers)) for g in block.groups)
        return self._batch_tokens * (activations(block) * self._weight_bytes + 3 * 4 * widest)

    @cached_property
    def _layers(self) -> Counter[Linear]:
        """Each of the model's layers, and how often it has it."""
        layers: Counter[Linear] = Counter()
        for block in self._model.blocks:
            for group in block.groups:
                for layer in group.layers:
                    layers[layer] += group.copies
        return layers

    def _factors(self, keep: float) -> float:
        """Truncating and interpolating the layers of one variant that a worker owns."""
        total = 0.0
        for la, copies in self._layers.items():
            rank = rank_of(la, keep)
            each = 2 * la.weights * (la.smaller_side + 2 * rank)
            total += copies * (each + rank * rank * (la.outputs + la.inputs))
        return total / self._cluster.workers

    def _read(self, times: float, nbytes: float) -> float:
        """Bytes from disk: a machine reads a file once for its workers, and again if it is too
        large for the page cache."""
        spare = self._cluster.host_memory * (1 - 2 * SHARE_FOR_HIDDEN_STATES)
        return (times if nbytes > spare else 1) * nbytes / self._cluster.workers_per_machine

    @property
    def _inside_stored(self) -> float:
        """The bytes of the blocks in the checkpoint."""
        return self._model.inside * self._model.stored_bytes

    def _keep(self, target: Target) -> float:
        """The fraction of the linear layers' parameters that a target keeps, at most."""
        if not isinstance(target, SizeTarget):
            return 1.0
        linear, whole = self._model.linear, self._model.parameters
        return target.keep if target.scope == "linear" else 1 - (1 - target.keep) * whole / linear

    def _artifact(self, keep: float) -> float:
        """Its bytes."""
        kept = self._model.parameters - (1 - keep) * self._model.linear
        return kept * self._artifact_bytes

    def _solved_bytes(self, group: Group) -> int:
        method, number, widths = self._spec.method, self._weight_bytes, self._spec.widths
        return sum(
            solution_bytes(layer, method, number)
            + rounded_bytes(layer, widths, self._artifact_bytes)
            for layer in group.layers
        )


def _is_gguf(spec: JobSpec) -> bool:
    """Whether a worker expands the model first; a machine that has done so before does not."""
    match spec.model:
        case LocalPath(path=place) | S3Prefix(uri=place):
            return place.endswith(".gguf")
    return False


def _in_float32(cost: Cost) -> Cost:
    """The same work without products in a lower precision."""
    single = cost.float32_operations + cost.model_operations
    return replace(cost, model_operations=0, float32_operations=single)


def _generated_tokens(spec: JobSpec) -> int:
    """The tokens that each model writes: to be timed, and after the prompts."""
    evaluation = spec.evaluation
    timed = evaluation.decode_tokens + WARM_UP_TOKENS if evaluation.decode_tokens else 0
    return timed + len(evaluation.prompts) * evaluation.completion_tokens

"""The pinned worker: one Ray actor per GPU (or per share of the CPUs) that stays for a whole job.

It calibrates its share of the sequences, solves the groups of layers that it owns, and measures
models. A separate thread serves statistics and factors, so that other workers never wait for this
one's computations. Once `resume` has named a place for checkpoints, it writes its statistics and
solutions there.
"""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import torch
from cachetools import LRUCache, cachedmethod
from torch import nn

from service.domain.credentials import NO_CREDENTIALS, Credentials
from service.domain.spec.evaluation import EvaluationTask, LmEval, MultipleChoice, PassAt1
from service.domain.spec.job import JobSpec
from service.domain.spec.targets import rounds_embeddings
from service.domain.tenant import EVERY_PLACE, Places
from service.errors import TargetUnreachable
from service.inputs.checks import check_allowed
from service.inputs.models.source_card import read_source_card
from service.inputs.models.sources import fetch_model
from service.inputs.opening import HeldFiles
from service.inputs.places import within
from service.settings import Settings
from workers.actors.calibrator import Calibrator
from workers.actors.measurer import Measurer
from workers.actors.replies import ModelSummary, TakenOver, WorkerPlace
from workers.actors.room import machine_sizes, model_memory_bytes, worker_memory_bytes
from workers.actors.scratch import attempts_in, remove_attempts
from workers.actors.solutions import RecoveredLayers, Solutions
from workers.actors.versions import own_versions
from workers.artifact.checkpoint_writer import check_roundable, check_writable
from workers.compression.candidates import LayerCandidates, Recovered, Width
from workers.compression.checkpoint import Replacement
from workers.compression.eigen import solving_dtype
from workers.compression.interpolation import Interpolation, interpolate
from workers.compression.metrics import METHODS
from workers.compression.rounding.embeddings import rounded_rows
from workers.compression.rounding.grid import RoundedWeight
from workers.compression.rounding.group import round_group
from workers.compression.shapes import InputGroup, VocabularyMatrix
from workers.compression.solve import Factors, Solution, solve_group
from workers.compression.state import SolvedLayer
from workers.compression.statistics import GroupStatistics, Observation, merged
from workers.compression.unfuse import router_paths
from workers.evaluation.choices import score_questions
from workers.evaluation.generation import check_prompts, continuations
from workers.evaluation.harness import check_harness, score_harness_task
from workers.evaluation.losses import TextLoss
from workers.evaluation.positions import check_positions, positions
from workers.evaluation.problems import Exercise, read_exercises
from workers.evaluation.programs import score_functions
from workers.evaluation.sandbox import check_sandbox
from workers.evaluation.scores import Scores
from workers.evaluation.speed import decode_speed
from workers.model.allocator import map_matrices, return_free_memory
from workers.model.blocks import StoredModel, traced_groups
from workers.model.loading import (
    SHARE_OF_GPU,
    check_loads,
    known_shapes,
    load_model,
    parameter_count,
    prepare_model,
    stored_dtype,
    stored_dtypes,
    vocabulary_size,
)
from workers.model.tokenizer import TextTokenizer, load_tokenizer
from workers.model.weight_files import weight_files
from workers.resumption.calibrated import Calibrated
from workers.resumption.calibration import CalibrationCheckpoints
from workers.resumption.checkpoints import Checkpoints, Place
from workers.resumption.fingerprint import model_digest
from workers.resumption.recovery import RecoveryCheckpoints
from workers.resumption.solved import SolvedCheckpoints
from workers.sweeps.passes import Pass
from workers.text.texts import Texts, check_token_ids, read_texts

CACHED_BYTES = 1 << 30
"""The limit of the cache of layers that were made: a probed size is often the one written."""

BFLOAT16_CAPABILITIES = ("amx_bf16", "avx512_bf16", "bf16")
"""The names in `torch.cpu.get_capabilities` of x86 and of Arm processors."""


class Worker:
    """See the module. `workers.actors.interface` is its Ray actor; tests call it directly."""

    def __init__(
        self,
        spec: JobSpec,
        attempt: str,
        number: int,
        threads: int,
        held: HeldFiles,
        places: Places = EVERY_PLACE,
    ) -> None:
        torch.set_num_threads(threads)
        self._spec = spec
        self.number = number
        self._method = METHODS[spec.method]
        self._widths = [Width(bits) for bits in spec.widths]
        self._held = held
        self._settings = within(Settings(), places)
        self._credentials = NO_CREDENTIALS
        if self._settings.worker_memory_bytes is not None:
            map_matrices()
        self._scratch = self._settings.scratch_dir / attempt / f"worker-{number}"
        self._versions = own_versions()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.mixed_precision = spec.mixed_precision == "bf16" or (
            spec.mixed_precision == "auto" and multiplies_bfloat16(self._device)
        )
        self.carried: list[str] = []  # names of stored tensors that the model does not use
        self.vocabulary: tuple[VocabularyMatrix, ...] = ()  # what a target rounds of it
        self.groups: dict[str, InputGroup] = {}
        self.group_of: dict[str, str] = {}
        memory = worker_memory_bytes(self._device, self._settings)
        self.solutions = Solutions(memory, self._scratch / "solved")
        self.recovered = RecoveredLayers(self._scratch / "recovered")
        self._made: LRUCache[tuple[Any, ...], Replacement] = LRUCache(
            min(CACHED_BYTES, memory), getsizeof=lambda layer: layer.nbytes
        )
        self._model: Any = None
        self._loaded_from: Path | None = None
        self._stored: StoredModel | None = None
        self._calibrator: Calibrator | None = None
        self._measurer: Measurer | None = None
        self._kept_calibration: CalibrationCheckpoints | None = None
        self._kept_solutions: SolvedCheckpoints | None = None
        self._kept_recovery: RecoveryCheckpoints | None = None

    def place(self) -> WorkerPlace:
        context = ray.get_runtime_context()
        return WorkerPlace(
            self.number,
            socket.gethostname(),
            context.get_node_id(),
            os.getpid(),
            str(self._device),
            _device_kind(self._device),
            torch.get_num_threads(),
            self.mixed_precision,
            context.get_accelerator_ids()["GPU"],
            os.environ.get("CUDA_VISIBLE_DEVICES"),
            self._versions,
            *machine_sizes(self._device, self._settings),
        )

    def take_credentials(self, credentials: Credentials) -> None:
        """Read the model and the texts with these of the tenant, from now on.

        Ray's head keeps what an actor is made with, and not what its methods are called with: so
        credentials come by a call.
        """
        self._credentials = credentials

    def attempts_in_scratch(self) -> list[str]:
        """The attempts that have files on this machine."""
        return attempts_in(self._settings.scratch_dir)

    def sweep_scratch(self, dead: Sequence[str]) -> None:
        """Remove what these attempts have left on this machine."""
        remove_attempts(self._settings.scratch_dir, dead)

    def load(self) -> ModelSummary:
        """Fetch and load the model and find its layers.

        Raises the errors of `workers.model.loading`, `workers.compression.layers` and
        `check_roundable`, TargetUnreachable for rounded embeddings of a model beyond the memory,
        InvalidParameter for sequences longer than the model can read; and what this machine lacks
        for the evaluation's tasks: CodeExecutionForbidden, SandboxUnavailable, HarnessMissing.
        """
        _check_tasks(self._spec, self._settings)
        unused = check_writable(self.source)
        self.carried = [*unused.carried]
        check_loads(self.source)
        groups = traced_groups(self.source)
        layers = [layer for group in groups for layer in group.layers]
        self.vocabulary = check_roundable(self.source, self._spec, layers)
        self.groups = {group.name: group for group in groups}
        self.group_of = {la.name: group.name for group in groups for la in group.layers}
        self._stored = stored = StoredModel(self.source, self._device)
        parameters = parameter_count(stored.model)
        self._check_vocabulary_fits(parameters)
        self._measurer = Measurer(
            stored,
            self.source,
            mixed_precision=self.mixed_precision,
            settings=self._settings,
            scratch=self._scratch / "measured",
        )
        check_positions(self._spec, stored.model.config)
        self._check_prompts()
        stored_bytes = sum(file.stat().st_size for file in weight_files(self.source))
        is_gguf = self.original.is_file()
        return ModelSummary(
            type(stored.model).__name__,
            parameters,
            stored_bytes,
            "gguf" if is_gguf else "safetensors",
            self.original.stat().st_size if is_gguf else stored_bytes,
            str(stored_dtype(self.source)).removeprefix("torch."),
            groups,
            self.blocks,
            len(stored_dtypes(self.source)) == 1,
            stored.unfused,
            self.vocabulary,
            _left_dense(stored.model, groups, self.vocabulary),
            unused.carried,
            unused.left_out,
            read_source_card(self.original),
            known_shapes(self.source),
        )

    def _check_vocabulary_fits(self, parameters: int) -> None:
        """transformers does not load an embedding of integers that would stay on the disk."""
        if not self.vocabulary:
            return
        size, room = 4 * parameters, self.model_memory_bytes
        if self._device.type == "cuda":
            size = self._artifact_dtype.itemsize * parameters
            room += int(torch.cuda.mem_get_info(self._device)[0] * SHARE_OF_GPU)
        if size > room:
            number = next(n for n, each in enumerate(self._spec.targets) if rounds_embeddings(each))
            raise TargetUnreachable(
                "Artifacts with a rounded embedding are proven in memory. This model takes "
                f"{size} bytes there, and {room} are free for it: set "
                "EIGENPRESS_MODEL_MEMORY_BYTES if there are more, or leave 'embedding_bits' at 16.",
                param=f"targets.{number}.embedding_bits",
            )

    def _check_prompts(self) -> None:
        wanted = self._spec.evaluation
        if wanted.prompts:
            tokenizer, longest = load_tokenizer(self.source), positions(self.stored.model.config)
            check_prompts(wanted.prompts, wanted.completion_tokens, tokenizer, longest)

    @cached_property
    def original(self) -> Path:
        """What the job names, on this node: a model's folder, or a GGUF file."""
        return fetch_model(self._spec.model, self._settings, self._held, self._credentials)

    @cached_property
    def source(self) -> Path:
        """The model's folder on this node."""
        return prepare_model(self.original, self._settings)

    def texts(self) -> Texts:
        """Read and tokenize the job's texts; one worker does it for all."""
        tokenizer: Any = TextTokenizer(self.source)
        texts = read_texts(self._spec, tokenizer, self._settings, self._credentials)
        check_token_ids(texts, tokenizer, vocabulary_size(self.source))
        return texts

    def exercises(self) -> list[Exercise]:
        """Read the problems of the job's tasks; one worker does it for all, once it has loaded."""
        tokenizer: Any = TextTokenizer(self.source)
        longest = positions(self.stored.model.config)
        return read_exercises(self._spec, tokenizer, longest, self._settings, self._credentials)

    def digest(self) -> str:
        """The sha256 of the model's files; one worker computes it for all."""
        return model_digest(self.source)

    def resume(self, place: Place, owned: Sequence[str]) -> TakenOver:
        """Have those of the owned groups that an earlier attempt has solved.

        From now on checkpoints are written to this place. Raises the storage's errors.
        """
        checkpoints = Checkpoints.in_bucket(place, self._settings)
        self._kept_calibration = CalibrationCheckpoints(
            checkpoints,
            self.number,
            self._settings.checkpoint_blocks,
            self._settings.checkpoint_share_of_time,
        )
        self._kept_solutions = SolvedCheckpoints(checkpoints, self.groups.values())
        self._kept_recovery = RecoveryCheckpoints(checkpoints, self.number)
        options: dict[str, list[LayerCandidates]] = {}

        def keep(group: str, layers: Sequence[SolvedLayer]) -> None:
            options[group] = self._keep(layers)

        refused = self._kept_solutions.restore(owned, keep)
        return TakenOver(options, refused)

    def begin_calibration(
        self, sequences: Sequence[Sequence[int]], solved: Sequence[str], loss_known: bool
    ) -> Calibrated:
        """Take a share of the sequences; what remains to be done after earlier attempts.

        See `workers.actors.calibrator.Calibrator.begin`.
        """
        self._calibrator = Calibrator(
            self.stored,
            tuple(self.groups.values()),
            self._method.observations | ({Observation.BOTH_SIDES} if self._widths else set()),
            mixed_precision=self.mixed_precision,
            settings=self._settings,
            scratch=self._scratch,
        )
        size, kept = self._spec.calibration.batch_size, self._kept_calibration
        return self._calibrator.begin(sequences, size, solved, loss_known=loss_known, kept=kept)

    def calibrate(self, each: Pass) -> list[float]:
        """Make one pass over a block; see `workers.actors.calibrator.Calibrator.run`."""
        return self._calibrating.run(each)

    def settle(self) -> list[str]:
        """End the calibration; wait until the solved groups are written.

        Returns the troubles there were with checkpoints.
        """
        if self._calibrator is not None:
            self._calibrator.end()
            self._calibrator = None
        kept = [each for each in (self._kept_calibration, self._kept_solutions) if each is not None]
        if self._kept_solutions is not None:
            self._kept_solutions.finish()
        troubles = [each.trouble for each in kept if each.trouble is not None]
        for each in kept:
            each.trouble = None
        return troubles

    def statistics(self, group: str) -> GroupStatistics:
        """Hand over this shard's statistics of a group; they are no longer held here."""
        return self._calibrating.hand_over(group)

    def solve(self, group: str, *shards: GroupStatistics) -> list[LayerCandidates]:
        """Sum the shards' statistics of a group, solve its layers and round them.

        Errors and costs are returned; factors and integers stay here. Raises SolveFailed.
        """
        whole = merged(shard.to(self._device) for shard in shards)
        layers = self.groups[group].layers
        tensors = self.stored.read([f"{layer.name}.weight" for layer in layers])
        weights = {layer.name: tensors[f"{layer.name}.weight"] for layer in layers}
        solutions = solve_group(
            self.groups[group], weights, whole, self._method, dtype=solving_dtype(self._device)
        )
        rounded = round_group(
            self.groups[group], weights, whole, self._widths, self._artifact_dtype
        )
        solved = {
            name: SolvedLayer(solution.to_host(), tuple(each.to_host() for each in rounded[name]))
            for name, solution in solutions.items()
        }
        if self._kept_solutions is not None:
            self._kept_solutions.write(group, solved)
        return self._keep(list(solved.values()))

    def _keep(self, layers: Sequence[SolvedLayer]) -> list[LayerCandidates]:
        for each in layers:
            self.solutions.put(each)
        return [each.options(self._artifact_dtype.itemsize) for each in layers]

    @cached_property
    def _artifact_dtype(self) -> torch.dtype:
        """The precision of what artifacts store as floating-point numbers."""
        given = self._spec.dtype
        dtype = stored_dtype(self.source) if given == "auto" else getattr(torch, given)
        assert isinstance(dtype, torch.dtype)  # noqa: S101 - the specification has such names
        return dtype

    def compressed(self, layer: str, form: int | Recovered | Width) -> Replacement:
        """A layer that this worker has solved, in a form that is not dense, and as it is stored.

        Any worker can round the embedding and the output layer.
        """
        if any(layer == matrix.name for matrix in self.vocabulary):
            return self._rounded_matrix(layer)
        if isinstance(form, Recovered) and isinstance(form.form, Width):
            return self.recovered.weight(form.target, layer, form.form)
        if isinstance(form, Width):
            return self.solutions[layer].weight(form)
        return self._low_rank(layer, form)

    @cachedmethod(lambda self: self._made)
    def _rounded_matrix(self, name: str) -> RoundedWeight:
        weight = self.stored.read([f"{name}.weight"])[f"{name}.weight"]
        return rounded_rows(weight, self._artifact_dtype).to(torch.device("cpu"))

    @cachedmethod(lambda self: self._made)
    def _low_rank(self, layer: str, form: int | Recovered) -> Interpolation:
        if isinstance(form, Recovered):
            return interpolate(self.recovered.factors(form.target, layer))
        solution = self.solutions[layer].solution
        return interpolate(cut(self.stored, solution, form))

    def release(self) -> None:
        """Forget factors and model: every artifact is written. What follows loads models anew."""
        self.solutions.clear()
        self.recovered.clear()
        self._made.clear()
        self._calibrator = self._measurer = self._stored = None
        self._model = self._loaded_from = None
        return_free_memory()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def begin_measuring(
        self,
        batches: Sequence[Sequence[Sequence[int]]],
        names: Sequence[Sequence[str]],
        dtype: str | None,
        *matrices: RoundedWeight,
    ) -> None:
        """Start to measure variants of the source model on text, in an artifact's precision.

        `names` are those of `matrices`, by variant: its rounded embedding and output layer. Without
        a precision the variants are in that of the source.
        """
        each = iter(matrices)
        vocabularies = [{name: next(each) for name in variant} for variant in names]
        self.measurer.begin(batches, vocabularies, None if dtype is None else getattr(torch, dtype))

    def measure_block(
        self, number: int, names: Sequence[Sequence[str]], *layers: Replacement
    ) -> None:
        """Go through a block; `names` are those of `layers`, by variant."""
        each = iter(layers)
        self.measurer.forward(number, [{name: next(each) for name in variant} for variant in names])

    def measured(self) -> list[list[TextLoss]]:
        """The loss of every batch, by variant, after the last block."""
        return self.measurer.losses()

    @property
    def model_memory_bytes(self) -> int:
        """How much of the host's memory a whole model may take."""
        return model_memory_bytes(self._device, self._settings)

    def score(self, folder: Path | None, task: EvaluationTask, problems: list[Any]) -> Scores:
        """What the source model (None), or the artifact in a folder, scores on one batch."""
        model, size = self._use(folder), self._spec.calibration.batch_size
        match task:
            case MultipleChoice():
                return score_questions(model, problems, size)
            case PassAt1():
                return score_functions(model, load_tokenizer(self.source), problems, task)
            case LmEval():
                (name,) = problems
                tokenizer = load_tokenizer(self.source)
                return score_harness_task(model, tokenizer, name, task, self._settings, size)

    def decode_speed(self, folder: Path | None, prompt: Sequence[int]) -> float:
        """Tokens per second of the source model (None), or of the artifact in a folder."""
        return decode_speed(self._use(folder), prompt, self._spec.evaluation.decode_tokens)

    def continuations(self, folder: Path | None) -> tuple[str, ...]:
        """What the source model (None), or an artifact, writes after the job's prompts."""
        wanted, tokenizer = self._spec.evaluation, load_tokenizer(self.source)
        return tuple(
            continuations(self._use(folder), tokenizer, wanted.prompts, wanted.completion_tokens)
        )

    def _use(self, artifact: Path | None) -> Any:
        """The source model (None), or an artifact loaded as its user will load it.

        The model held before is dropped first: a worker has memory for one.
        """
        folder = artifact or self.source
        if folder != self._loaded_from:
            self._model = None
            self._model = load_model(
                folder,
                self._device,
                trust_remote_code=artifact is not None,
                memory_bytes=self.model_memory_bytes,
            )
            self._loaded_from = folder
        return self._model

    @property
    def stored(self) -> StoredModel:
        """The source model, until `release`."""
        assert self._stored is not None  # noqa: S101 - between `load` and `release`
        return self._stored

    @cached_property
    def blocks(self) -> tuple[tuple[str, ...], ...]:
        """The names of the compressible layers in each block."""
        blocks: list[list[str]] = [[] for _ in self.stored.passage.blocks]
        for layer in (layer for group in self.groups.values() for layer in group.layers):
            blocks[self.stored.block_of(layer.name)].append(layer.name)
        return tuple(map(tuple, blocks))

    @property
    def measurer(self) -> Measurer:
        """What measures the model on text."""
        assert self._measurer is not None  # noqa: S101 - between `load` and `release`
        return self._measurer

    @property
    def kept_recovery(self) -> RecoveryCheckpoints:
        """The checkpoints of recoveries."""
        assert self._kept_recovery is not None  # noqa: S101 - `resume` comes first
        return self._kept_recovery

    @property
    def _calibrating(self) -> Calibrator:
        assert self._calibrator is not None  # noqa: S101 - `begin_calibration` comes first
        return self._calibrator


def cut(stored: StoredModel, solution: Solution, rank: int) -> Factors:
    """The best factors of a layer at a rank."""
    weight, bias = f"{solution.layer.name}.weight", f"{solution.layer.name}.bias"
    tensors = stored.read([weight, bias] if solution.layer.has_bias else [weight])
    return solution.truncate(rank, tensors[weight], tensors.get(bias))


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the processor has instructions for bfloat16, which is slow without them."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in BFLOAT16_CAPABILITIES)


def _device_kind(device: torch.device) -> str:
    """Which arithmetic it does: two kinds may round differently."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    bfloat16 = " bfloat16" if multiplies_bfloat16(device) else ""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}{bfloat16}"


def _check_tasks(spec: JobSpec, settings: Settings) -> None:
    check_allowed(spec, settings)
    kinds = {type(task) for task in spec.evaluation.tasks}
    if PassAt1 in kinds:
        check_sandbox()
    if LmEval in kinds:
        check_harness()


def _left_dense(
    model: nn.Module, groups: Sequence[InputGroup], vocabulary: Sequence[VocabularyMatrix]
) -> dict[str, str]:
    """The matrices that no target compresses: embeddings, the output head, routers."""
    compressed = {f"{layer.name}.weight" for group in groups for layer in group.layers}
    compressed |= {f"{matrix.name}.weight" for matrix in vocabulary}
    routers = {f"{path}.weight" for path in router_paths(model)}
    return {
        name: "router of a mixture of experts"
        if name in routers
        else "outside the transformer blocks"
        for name, parameter in model.named_parameters()
        if parameter.ndim >= 2 and name not in compressed
    }

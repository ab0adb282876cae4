"""The specification of a job: the user's request, validated once, at the edge.

These models are the body of ``POST /v1/jobs`` and are stored with the job. A field that is
unknown, of the wrong type or out of bounds is an error; nothing is coerced from text. That holds
for a stored specification, too: a field that a newer version has added is never left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, LiteralString, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError, PydanticKnownError

from service.domain.labels import Labels
from service.domain.states import Step
from service.errors import SpecificationUnknown
from service.printable import shortened

MAX_TARGETS = 32
MAX_EVALUATION_DATASETS = 16
MAX_CURVE_POINTS = 64
MAX_PROMPTS = 8
MAX_PROMPT_CHARACTERS = 2000
MAX_TASKS = 32
MAX_PROBLEMS = 100_000
MAX_PERPLEXITY_INCREASE = 1000.0
MAX_WILDCARD_NAMES = 16
"""Each costs time for every file that the pattern is compared with."""
MAX_WORKERS = 1024
MAX_SEQUENCES = 1_000_000
MAX_SEQUENCE_LENGTH = 131_072
RECOVERY_SEQUENCES = 3
"""A recovery trains on so many times the sequences of the calibration, unless the job says more."""

HELD_OUT = "held-out"
"""The name under which perplexity on the calibration data's own held-out documents is reported."""

MAX_LIMIT_SECONDS = 30 * 86_400
MAX_PRIORITY = 100

COMMIT_PATTERN = r"^[0-9a-f]{40}$"
DATASET_ID_PATTERN = r"^ds-[0-9a-z]{26}$"
ACCELERATOR_TYPE_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
"""The value of a label of Ray; its operators `!` and `in(…)` are not for jobs."""
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
REPOSITORY_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?$"
S3_URI_PATTERN = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$"

TEXT_FIELD = "text"
"""The field of rows that holds their text, unless a user names another."""

UNION_FIELDS = frozenset({"model", "data", "targets", "tasks"})
"""Fields of one type or another; pydantic puts that type's tag into an error's location, after
the field or, in an array, after its index."""

NAME_OF_MEMBER = "[key]"
"""Pydantic ends an error's location with it where the name of a member is at fault."""

Wanted = TypeVar("Wanted", bound=tuple[Any, ...])
Read = TypeVar("Read", bound="Body")


class Body(BaseModel):
    """Strict and closed: no unknown fields, no coercion, no change after validation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _array(max_length: int) -> BeforeValidator:
    """Takes a JSON array as a tuple; refuses a longer one before its items are validated.

    Pydantic's own bound comes after the items, and reports every wrong one.
    """

    def accept(value: object) -> object:
        if not isinstance(value, list):
            return value
        if len(value) > max_length:
            bound = {"field_type": "Array", "max_length": max_length, "actual_length": len(value)}
            raise PydanticKnownError("too_long", bound)
        return tuple(value)

    return BeforeValidator(accept)


def _refuse_repeated(names: Sequence[str], code: LiteralString, message: LiteralString) -> None:
    """Raise the error for the first name that occurs more than once."""
    for name in names:
        if names.count(name) > 1:
            raise PydanticCustomError(code, message, {"name": name})


def _refuse_many_wildcards(pattern: str) -> str:
    wild = [name for name in pattern.split("/") if name != "**" and set(name) & set("*?[")]
    if len(wild) > MAX_WILDCARD_NAMES:
        raise PydanticCustomError(
            "invalid_parameter",
            "has wildcards in {count} names; at most {most} are allowed",
            {"count": len(wild), "most": MAX_WILDCARD_NAMES},
        )
    return pattern


Pattern = Annotated[
    str, Field(min_length=1, max_length=512), AfterValidator(_refuse_many_wildcards)
]


class LocalPath(Body):
    """A folder or file that every machine of the cluster sees under the same path."""

    source: Literal["local"]
    path: str = Field(min_length=1, max_length=4096, description="Absolute path.")


class S3Prefix(Body):
    """A prefix (or one object) in an S3 bucket that the service's credentials can read."""

    source: Literal["s3"]
    uri: str = Field(pattern=S3_URI_PATTERN, max_length=2048, examples=["s3://models/llama-3"])


class HubModel(Body):
    """A repository of the model hub, pinned to a commit."""

    source: Literal["hub"]
    id: str = Field(pattern=REPOSITORY_PATTERN, max_length=200)
    revision: str = Field(pattern=COMMIT_PATTERN, description="A full commit hash, never a branch.")


class LocalData(LocalPath):
    """Text files below a local folder, or one file.

    Each file, JSONL line or Parquet row is a document.
    """

    pattern: Pattern = "**/*"
    text_field: str = Field(default=TEXT_FIELD, min_length=1, max_length=200)


class S3Data(S3Prefix):
    """Text files below an S3 prefix."""

    pattern: Pattern = "**/*"
    text_field: str = Field(default=TEXT_FIELD, min_length=1, max_length=200)


class HubData(HubModel):
    """Text, JSONL or Parquet files of a hub dataset, pinned to a commit."""

    pattern: Pattern = "**/*"
    text_field: str = Field(default=TEXT_FIELD, min_length=1, max_length=200)


class DatasetData(Body):
    """A dataset that was uploaded to this service."""

    source: Literal["dataset"]
    id: str = Field(pattern=DATASET_ID_PATTERN, examples=["ds-01kah7m0q8v5n2c4x6z9b3d1fg"])


ModelSource = Annotated[LocalPath | S3Prefix | HubModel, Field(discriminator="source")]
DataSource = Annotated[LocalData | S3Data | HubData | DatasetData, Field(discriminator="source")]

Method = Literal["impact-kron", "impact", "afm", "svd-llm", "asvd", "fwsvd", "svd"]
AllocationKind = Literal["global", "uniform"]
Scope = Literal["linear", "model"]
Optimize = Literal["size", "speed"]
Precisions = Literal["vllm", "vllm-cpu", "transformers"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
MixedPrecision = Literal["no", "bf16", "auto"]
EmbeddingBits = Literal[16, 8]


class SizeTarget(Body):
    """One size to produce. Every target of a job is cut from the same calibration and spectra."""

    keep: float = Field(gt=0.0, lt=1.0, description="Fraction of the parameters to keep.")
    scope: Scope = Field(
        default="linear",
        description="Whether `keep` counts the compressible layers or the whole model.",
    )
    optimize: Optimize = Field(
        default="size",
        description="With `size` the ranks lose least. With `speed` they lose least among those "
        "at which a layer should be no slower than dense, by an estimate for CPUs; a layer without "
        "such a rank stays dense.",
    )

    @property
    def name(self) -> str:
        """The artifact's name, unique within the job: ``keep-0.8``, ``keep-0.8-of-model``."""
        scope = "" if self.scope == "linear" else "-of-model"
        return f"keep-{self.keep:g}{scope}{'' if self.optimize == 'size' else '-speed'}"


WIDTHS: Mapping[Precisions, tuple[int, ...]] = {
    "vllm": (4, 8),
    "vllm-cpu": (4,),
    "transformers": (2, 3, 4, 5, 6, 8),
}
"""The integers, by their bits, that each engine can load; all load the layers that stay dense."""

JOINING: frozenset[Precisions] = frozenset({"vllm", "vllm-cpu"})
"""These engines join the matrices of layers that share an input, so they need one width."""

SIDES: Mapping[Precisions, int] = {"vllm-cpu": 32}
"""What the sides of every matrix in integers must be a multiple of."""


class ByteTarget(Body):
    """A model of so many bytes. Each layer gets the bits that cost the loss least in all."""

    bytes_fraction: float | None = Field(
        default=None,
        gt=0.0,
        lt=1.0,
        description="Of the bytes that the parameters would take with 16 bits each.",
    )
    bytes: int | None = Field(default=None, ge=1, description="As stored.")
    scope: Scope = Field(
        default="linear",
        description="Whether the compressible layers or the whole model may have so many bytes.",
    )
    precisions: Precisions = Field(
        default="vllm",
        description="The engine that must load the artifact: `vllm` has integers of 4 and 8 bits, "
        "and one choice for q, k and v and for gate and up; `vllm-cpu` has 4 bits alone; "
        "`transformers` has 2 to 6 and 8 bits.",
    )
    embedding_bits: EmbeddingBits = Field(
        default=16,
        description="Of a number of the embedding and of the output layer, with 16 as they are. "
        "Only `transformers` has 8.",
    )

    @field_validator("embedding_bits")
    @classmethod
    def _engine_has_embeddings(cls, bits: EmbeddingBits, info: ValidationInfo) -> EmbeddingBits:
        precisions = info.data.get("precisions")  # None if it is invalid
        if bits != 16 and precisions not in (None, "transformers"):
            raise PydanticCustomError(
                "invalid_parameter",
                "'{precisions}' has no integers for the embedding and the output layer: leave it "
                "at 16, or set 'precisions' to 'transformers'",
                {"precisions": precisions},
            )
        return bits

    @property
    def name(self) -> str:
        """The artifact's name, unique within the job: ``bytes-0.28``, ``bytes-0.3-of-model``."""
        size = f"{self.bytes_fraction:g}" if self.bytes is None else str(self.bytes)
        scope = "" if self.scope == "linear" else "-of-model"
        engine = "" if self.precisions == "vllm" else f"-{self.precisions}"
        embeddings = "" if self.embedding_bits == 16 else f"-embeddings-{self.embedding_bits}"
        return f"bytes-{size}{scope}{engine}{embeddings}"


class QualityTarget(Body):
    """The smallest model whose perplexity is at most 1 + `max_perplexity_increase` times the dense.

    Found by bisection over measured sizes, to within half a percent of the compressible layers'
    parameters.
    """

    max_perplexity_increase: float = Field(
        gt=0.0,
        le=MAX_PERPLEXITY_INCREASE,
        description="As a fraction: 0.1 allows 1.1 times the dense model's perplexity.",
    )
    dataset: str = Field(
        default=HELD_OUT,
        pattern=NAME_PATTERN,
        description="The text to measure: `held-out`, or a dataset of the evaluation.",
    )
    precisions: Precisions | None = Field(
        default=None,
        description="With an engine's name the layers get fewer bits, and bytes are counted; "
        "unset: a lower rank, and parameters are counted.",
    )

    @property
    def name(self) -> str:
        """The artifact's name, unique within the job: ``increase-0.1``, ``increase-0.1-wiki``."""
        dataset = "" if self.dataset == HELD_OUT else f"-{self.dataset}"
        engine = "" if self.precisions is None else f"-{self.precisions}"
        return f"increase-{self.max_perplexity_increase:g}{dataset}{engine}"


SIZES = frozenset({"keep", "max_perplexity_increase", "bytes_fraction", "bytes"})
"""A target sets one of these fields."""


def _require_one_size(target: object) -> object:
    if not isinstance(target, Mapping):
        return target
    sizes = SIZES & target.keys()
    if sizes != {"keep"} and sum(target[size] is not None for size in sizes) != 1:
        raise PydanticCustomError(
            "invalid_parameter",
            "set one of 'keep' for a number of parameters, 'bytes_fraction' or 'bytes' for a size "
            "in bytes, or 'max_perplexity_increase' for a quality; the target has the fields: "
            "{fields}",
            {"fields": shortened(", ".join(map(ascii, target))) or "none"},
        )
    return target


def _kind(target: object) -> str:
    if isinstance(target, Mapping):
        if "max_perplexity_increase" in target:
            return "quality"
        return "size" if "keep" in target else "bytes"
    if isinstance(target, QualityTarget):
        return "quality"
    return "size" if isinstance(target, SizeTarget) else "bytes"


Target = Annotated[
    Annotated[SizeTarget, Tag("size")]
    | Annotated[QualityTarget, Tag("quality")]
    | Annotated[ByteTarget, Tag("bytes")],
    Discriminator(_kind),
    BeforeValidator(_require_one_size),
]


class Calibration(Body):
    """The text on which activations and gradients are measured."""

    data: DataSource
    sequences: int = Field(default=128, ge=1, le=MAX_SEQUENCES)
    sequence_length: int = Field(default=512, ge=8, le=MAX_SEQUENCE_LENGTH, description="Tokens.")
    batch_size: int = Field(default=8, ge=1, le=4096, description="Sequences per forward pass.")
    held_out_fraction: float = Field(
        default=0.1, gt=0.0, lt=1.0, description="Share of the documents kept for evaluation."
    )
    seed: int = Field(default=0, ge=0, le=2**31 - 1)


class EvaluationDataset(Body):
    """A further text to measure perplexity on, besides the held-out documents."""

    name: str = Field(pattern=NAME_PATTERN)
    data: DataSource
    sequences: int | None = Field(
        default=None, ge=1, le=MAX_SEQUENCES, description="Maximum; unset: the evaluation's."
    )


class Task(Body):
    """A set of problems for the models to solve."""

    name: str = Field(pattern=NAME_PATTERN, description="Unique among the tasks.")
    limit: int | None = Field(
        default=None, ge=1, le=MAX_PROBLEMS, description="Problems, at most; unset: all."
    )


class MultipleChoice(Task):
    """Questions with a list of choices; the model answers with the choice it finds most likely.

    The model reads the unchanged question, a space, and each choice. JSONL lines or Parquet rows
    have a question, a list of choices, and the position of the right one, counted from 0.
    """

    kind: Literal["multiple_choice"]
    data: DataSource
    question_field: str = Field(default="question", min_length=1, max_length=200)
    choices_field: str = Field(default="choices", min_length=1, max_length=200)
    answer_field: str = Field(default="answer", min_length=1, max_length=200)


class PassAt1(Task):
    """Python functions that the model completes, greedily, and that their tests then judge.

    JSONL lines in the form of HumanEval: `task_id`, `prompt`, `entry_point`, `test`. The workers
    run the model's code in a sandbox, if the server's `allow_code_execution` is set.
    """

    kind: Literal["pass_at_1"]
    data: DataSource
    max_new_tokens: int = Field(default=384, ge=1, le=4096)
    timeout_seconds: float = Field(default=5.0, ge=1.0, le=120.0, description="Of each program.")
    memory_bytes: int = Field(
        default=2**30, ge=2**28, le=2**36, description="Address space of each program."
    )


class LmEval(Task):
    """Tasks of lm-eval by their names, if that library is installed on the workers."""

    kind: Literal["lm_eval"]
    tasks: Annotated[
        tuple[Annotated[str, Field(pattern=NAME_PATTERN)], ...],
        Field(min_length=1, max_length=MAX_TASKS),
        _array(MAX_TASKS),
    ]
    num_fewshot: int | None = Field(
        default=None, ge=0, le=64, description="Unset: each task's own number."
    )

    @field_validator("tasks")
    @classmethod
    def _names_are_unique(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        _refuse_repeated(tasks, "duplicate_task", "the task '{name}' is named twice")
        return tasks


EvaluationTask = Annotated[MultipleChoice | PassAt1 | LmEval, Field(discriminator="kind")]


class Evaluation(Body):
    """The measurements of the dense model and of every compressed one."""

    enabled: bool = True
    sequences: int = Field(
        default=64,
        ge=1,
        le=MAX_SEQUENCES,
        description="Maximum per dataset, the held-out text included.",
    )
    datasets: Annotated[
        tuple[EvaluationDataset, ...],
        Field(max_length=MAX_EVALUATION_DATASETS),
        _array(MAX_EVALUATION_DATASETS),
    ] = ()
    decode_tokens: int = Field(
        default=32, ge=0, le=4096, description="Tokens generated to time decoding; 0 skips it."
    )
    curve: Annotated[
        tuple[Annotated[float, Field(gt=0.0, lt=1.0)], ...],
        Field(
            max_length=MAX_CURVE_POINTS,
            description="Further sizes, as fractions of the compressible layers' parameters, that "
            "are measured for the report's curve but not written as artifacts.",
        ),
        _array(MAX_CURVE_POINTS),
    ] = ()
    tasks: Annotated[
        tuple[EvaluationTask, ...], Field(max_length=MAX_TASKS), _array(MAX_TASKS)
    ] = ()
    prompts: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)], ...],
        Field(
            max_length=MAX_PROMPTS,
            description="Beginnings of texts that every model continues, for the report.",
        ),
        _array(MAX_PROMPTS),
    ] = ()
    completion_tokens: int = Field(
        default=64, ge=1, le=256, description="Tokens, at most, after each of the prompts."
    )

    @field_validator("datasets")
    @classmethod
    def _names_are_unique(
        cls, datasets: tuple[EvaluationDataset, ...]
    ) -> tuple[EvaluationDataset, ...]:
        names = [HELD_OUT, *(dataset.name for dataset in datasets)]
        _refuse_repeated(names, "duplicate_dataset", "the dataset name '{name}' is used twice")
        return datasets

    @field_validator("tasks")
    @classmethod
    def _tasks_are_distinct(cls, tasks: tuple[EvaluationTask, ...]) -> tuple[EvaluationTask, ...]:
        names = [task.name for task in tasks]
        _refuse_repeated(names, "duplicate_task", "the task name '{name}' is used twice")
        return tasks

    @field_validator("curve", "tasks", "prompts")
    @classmethod
    def _is_measured(cls, wanted: Wanted, info: ValidationInfo) -> Wanted:
        if wanted and info.data.get("enabled") is False:
            raise PydanticCustomError("invalid_parameter", "needs the evaluation to be enabled")
        return wanted


class Limits(Body):
    """Time limits; a job that exceeds one fails."""

    queue_seconds: int | None = Field(
        default=None,
        ge=1,
        le=MAX_LIMIT_SECONDS,
        description="Until its first attempt; unset: no limit.",
    )
    run_seconds: int | None = Field(
        default=None, ge=1, le=MAX_LIMIT_SECONDS, description="Over all attempts; unset: no limit."
    )


class Recovery(Body):
    """Training of compressed layers towards the dense model's predictions.

    Of layers of low rank all numbers are trained, of layers in few bits the scales. It uses the
    calibration's text and needs no labels. Some of the sequences are kept aside: what predicts
    these best is kept, so that training never makes a model worse on them.
    """

    sequences: int | None = Field(
        default=None,
        ge=2,
        le=MAX_SEQUENCES,
        description="Sequences to train on, those kept aside included. Unset: "
        f"{RECOVERY_SEQUENCES} times as many as of the calibration, which come first.",
    )
    epochs: int = Field(
        default=1,
        ge=1,
        le=64,
        description="How often each sequence is trained on. More text is better than more epochs.",
    )
    batch_size: int = Field(default=4, ge=1, le=4096, description="Sequences per step.")
    step_size: float = Field(
        default=1.0,
        gt=0.0,
        le=100.0,
        description="Relative to the usual one. Steps get smaller where they make the model worse.",
    )

    def asked(self, calibration: Calibration) -> int:
        """How many sequences it asks for."""
        return self.sequences or RECOVERY_SEQUENCES * calibration.sequences


class JobSpec(Body):
    """One compression job: a model, its calibration text, a method and its targets."""

    name: str | None = Field(default=None, pattern=NAME_PATTERN, description="A label for people.")
    model: ModelSource
    calibration: Calibration
    method: Method = "impact-kron"
    allocation: AllocationKind = "global"
    evaluation: Evaluation = Evaluation()
    recovery: Recovery | None = Field(
        default=None,
        description="Unset: the layers stay as they are cut or rounded. `{}`: as is usual.",
    )
    targets: Annotated[
        tuple[Target, ...], Field(min_length=1, max_length=MAX_TARGETS), _array(MAX_TARGETS)
    ]
    dtype: Dtype = Field(default="auto", description="Of the artifacts; `auto`: the model's own.")
    mixed_precision: MixedPrecision = Field(
        default="no",
        description="Calibration and perplexity multiply in bfloat16 with `bf16`, and with `auto` "
        "where a worker's processor has instructions for that. Statistics stay in float32.",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        le=MAX_WORKERS,
        description="Unset: one per GPU, or per two CPUs, of the job's part of the cluster.",
    )
    accelerator_type: str | None = Field(
        default=None,
        pattern=ACCELERATOR_TYPE_PATTERN,
        description="The workers' machines have GPUs of this type, as their label of Ray "
        "`ray.io/accelerator-type` says: `H100`. Unset: any machines.",
    )
    priority: int = Field(
        default=0,
        ge=-MAX_PRIORITY,
        le=MAX_PRIORITY,
        description="Higher runs earlier, among one tenant's jobs.",
    )
    limits: Limits = Limits()
    labels: Labels = Field(
        default={},
        description='To find the job by, such as `{"team": "ml"}`; they have no effect on it.',
        examples=[{"team": "ml", "stage": "trial"}],
    )

    @property
    def widths(self) -> tuple[int, ...]:
        """The bits of all integers that any target may use, ascending."""
        return tuple(sorted({bits for target in self.targets for bits in bits_of(target)}))

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps of its attempts, in order."""
        left_out = {
            Step.RECOVER: self.recovery is None,
            Step.EVALUATE: not self.evaluation.enabled,
        }
        return tuple(step for step in Step if not left_out.get(step, False))

    @field_validator("recovery")
    @classmethod
    def _recovery_has_text(cls, recovery: Recovery | None, info: ValidationInfo) -> Recovery | None:
        calibration: Calibration | None = info.data.get("calibration")  # None if it is invalid
        if recovery and calibration and recovery.asked(calibration) < 2 * recovery.batch_size:
            raise PydanticCustomError(
                "invalid_parameter",
                "needs two batches of {size} sequences, one of them to be kept aside, and asks for "
                "{count} sequences: set 'recovery.sequences' to {least} or more, or a smaller "
                "'recovery.batch_size'",
                {
                    "size": recovery.batch_size,
                    "count": recovery.asked(calibration),
                    "least": 2 * recovery.batch_size,
                },
            )
        return recovery

    @field_validator("targets")
    @classmethod
    def _targets_are_distinct(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        names = [target.name for target in targets]
        _refuse_repeated(names, "duplicate_target", "the target '{name}' occurs twice")
        return targets

    @field_validator("targets")
    @classmethod
    def _bits_are_priced(
        cls, targets: tuple[Target, ...], info: ValidationInfo
    ) -> tuple[Target, ...]:
        method, allocation = info.data.get("method"), info.data.get("allocation")
        for number, target in enumerate(targets):
            if bits_of(target) and method not in (None, "impact-kron"):
                raise PydanticCustomError(
                    "invalid_parameter",
                    "targets.{number} asks for fewer bits, which are priced by gradients: leave "
                    "the method at 'impact-kron'",
                    {"number": number},
                )
            if bits_of(target) and allocation == "uniform":
                raise PydanticCustomError(
                    "invalid_parameter",
                    "targets.{number} asks for bits by layer: leave the allocation at 'global'",
                    {"number": number},
                )
        return targets

    @field_validator("targets")
    @classmethod
    def _qualities_are_measured(
        cls, targets: tuple[Target, ...], info: ValidationInfo
    ) -> tuple[Target, ...]:
        evaluation: Evaluation | None = info.data.get("evaluation")  # None if it is invalid
        qualities = [target for target in targets if isinstance(target, QualityTarget)]
        if evaluation is None or not qualities:
            return targets
        if not evaluation.enabled:
            raise PydanticCustomError(
                "invalid_parameter",
                "the target '{name}' needs the evaluation to be enabled",
                {"name": qualities[0].name},
            )
        names = [HELD_OUT, *(dataset.name for dataset in evaluation.datasets)]
        for number, target in enumerate(targets):
            if isinstance(target, QualityTarget) and target.dataset not in names:
                raise PydanticCustomError(
                    "invalid_parameter",
                    "targets.{number} names the dataset '{dataset}', which the evaluation does not "
                    "have; it has: {names}",
                    {
                        "number": number,
                        "dataset": target.dataset,
                        "names": ", ".join(names),
                    },
                )
        return targets


def rounds_embeddings(target: Target) -> bool:
    """Whether a target's embedding and output layer become integers."""
    return isinstance(target, ByteTarget) and target.embedding_bits != 16


def bits_of(target: Target) -> tuple[int, ...]:
    """The widths of integers that a target may use; none if it asks for ranks."""
    if isinstance(target, SizeTarget) or target.precisions is None:
        return ()
    return WIDTHS[target.precisions]


def read_stored(job_id: str, stored: str) -> JobSpec:
    """The specification of a job as it is stored. Raises SpecificationUnknown."""
    document = json.loads(stored)
    if isinstance(calibration := document.get("calibration"), dict):
        calibration.pop("gradient_checkpointing", None)  # an older field, without effect on results
    return _read(JobSpec, job_id, document)


def read_stored_limits(job_id: str, stored: str) -> Limits:
    """The limits of a job, all that a dispatcher reads of its specification.

    Raises SpecificationUnknown.
    """
    return _read(Limits, job_id, json.loads(stored).get("limits", {}), "limits")


def _read(body: type[Read], job_id: str, document: object, *field: str) -> Read:
    try:
        return body.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = ".".join(field_path((*field, *first["loc"])))
        raise SpecificationUnknown(
            f"A newer version of Eigenpress wrote the specification of {job_id}; this version "
            f"{_unknown(param, first['type'], first['input'])}. Install the newer version on the "
            "APIs, the dispatchers and every node of Ray, then retry the job.",
            param=param,
        ) from error


def _unknown(param: str, kind: str, value: object) -> str:
    match kind:
        case "extra_forbidden":
            return f"does not know the field '{param}'"
        case "missing":
            return f"needs the field '{param}', which is missing"
        case _:
            shown = shortened(json.dumps(value, default=str))
            return f"does not know the value {shown} of the field '{param}'"


def field_path(location: Sequence[str | int]) -> list[str]:
    """The parts of a field's name as its user wrote it: without the tags of unions.

    ``("model", "local", "path")``, an error's location, is ``model.path``.
    """
    return [
        str(part)
        for i, part in enumerate(location)
        if part != NAME_OF_MEMBER and not _is_tag(location[: i + 1])
    ]


def _is_tag(parts: Sequence[str | int]) -> bool:
    """Whether the last part of a location is the tag of a union."""
    *before, last = parts
    if isinstance(last, int):
        return False
    if before and isinstance(before[-1], int):
        before.pop()
    return bool(before) and before[-1] in UNION_FIELDS

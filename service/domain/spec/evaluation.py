"""What a job measures: perplexity on texts, tasks, and texts that models write."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from service.domain.spec.calibration import MAX_SEQUENCES
from service.domain.spec.fields import NAME_PATTERN, Body, array, refuse_repeated
from service.domain.spec.sources import DataSource

MAX_EVALUATION_DATASETS = 16
MAX_CURVE_POINTS = 64
MAX_PROMPTS = 8
MAX_PROMPT_CHARACTERS = 2000
MAX_TASKS = 32
MAX_PROBLEMS = 100_000

HELD_OUT = "held-out"
"""The name under which perplexity on the calibration data's own held-out documents is reported."""

Wanted = TypeVar("Wanted", bound=tuple[Any, ...])


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
        array(MAX_TASKS),
    ]
    num_fewshot: int | None = Field(
        default=None, ge=0, le=64, description="Unset: each task's own number."
    )

    @field_validator("tasks")
    @classmethod
    def _names_are_unique(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        refuse_repeated(tasks, "duplicate_task", "the task '{name}' is named twice")
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
        array(MAX_EVALUATION_DATASETS),
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
        array(MAX_CURVE_POINTS),
    ] = ()
    tasks: Annotated[tuple[EvaluationTask, ...], Field(max_length=MAX_TASKS), array(MAX_TASKS)] = ()
    prompts: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)], ...],
        Field(
            max_length=MAX_PROMPTS,
            description="Beginnings of texts that every model continues, for the report.",
        ),
        array(MAX_PROMPTS),
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
        refuse_repeated(names, "duplicate_dataset", "the dataset name '{name}' is used twice")
        return datasets

    @field_validator("tasks")
    @classmethod
    def _tasks_are_distinct(cls, tasks: tuple[EvaluationTask, ...]) -> tuple[EvaluationTask, ...]:
        names = [task.name for task in tasks]
        refuse_repeated(names, "duplicate_task", "the task name '{name}' is used twice")
        return tasks

    @field_validator("curve", "tasks", "prompts")
    @classmethod
    def _is_measured(cls, wanted: Wanted, info: ValidationInfo) -> Wanted:
        if wanted and info.data.get("enabled") is False:
            raise PydanticCustomError("invalid_parameter", "needs the evaluation to be enabled")
        return wanted

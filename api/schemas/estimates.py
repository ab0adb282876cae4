"""The body of an estimate."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from api.schemas import examples
from api.schemas.problems import ProblemItem
from api.schemas.schema import Schema
from service.domain.costs.sizes import TargetSize
from service.domain.states import Step
from service.estimates import estimate as estimates


class ModelEstimate(Schema):
    """The dense model, by its configuration and the headers of its weights."""

    parameters: int
    linear_parameters: int = Field(description="Of the layers that can be compressed.")
    dtype: str = Field(description="Of the checkpoint.", examples=["bfloat16"])
    dense_bytes: int = Field(description="Of all parameters in the artifacts' precision.")


class ArtifactSize(Schema):
    """The most that an artifact's weights have; the job's choice comes near it."""

    parameters: int
    bytes: int = Field(description="Without the headers of files, which take kilobytes.")
    linear_parameters: int
    linear_bytes: int


class TargetEstimate(Schema):
    """A target and the size of its artifact."""

    name: str = Field(examples=["keep-0.8"])
    size: ArtifactSize | None = Field(description="Null if calibration decides it.")


class WorkersEstimate(Schema):
    """The workers that the job would get, and what Ray reserves for each."""

    workers: int
    cpus: int
    gpus: int = Field(description="0 or 1.")
    accelerator_type: str | None = None


class MemoryEstimate(Schema):
    """The peaks of each process beyond its program, in bytes."""

    worker: int = Field(description="Of the host's memory.")
    worker_gpu: int | None = Field(description="Null without GPUs.")
    worker_files: int = Field(description="Of its machine's disk.")
    too_little: dict[Step, list[str]] = Field(
        description="By step, what the machines have too little of: `GPU`, `host` or `files`."
    )


class StepEstimate(Schema):
    """The time of one step."""

    step: Step
    seconds: float
    waits_for: str = Field(
        description="The slowest resource: `arithmetic`, `memory`, `loading`, `disk`, `network`, "
        "`calls` (of blocks, beside their arithmetic) or `starts` (of processes)."
    )


class TimeEstimate(Schema):
    """The time of the job, once it has its workers."""

    sum: float
    steps: list[StepEstimate]
    measured_jobs: int = Field(
        description="Earlier jobs of this installation whose times correct these; 0: none do."
    )


class Unknown(Schema):
    """What the estimate cannot say."""

    field: str = Field(description="Of the request, or of this answer.")
    reason: str


class Estimate(Schema):
    """What a job would make and take. Null is what is not known; `unknown` has the reasons."""

    model_config = examples.example(examples.ESTIMATE)

    model: ModelEstimate | None
    tokens: int = Field(description="Of calibration.")
    targets: list[TargetEstimate] = Field(description="Empty if the model is not known.")
    workers: WorkersEstimate | None
    waits: str | None = Field(description="Why the job would not begin at once, if it would not.")
    memory: MemoryEstimate | None
    driver_memory: int | None = Field(description="Of the process on Ray's head, in bytes.")
    seconds: TimeEstimate | None
    problems: list[ProblemItem] = Field(
        description="Why the job would be refused, or would fail: the errors of `POST /v1/jobs` "
        "and of attempts."
    )
    unknown: list[Unknown]

    @classmethod
    def of(cls, estimate: estimates.Estimate) -> Self:
        model, steps = estimate.model, estimate.steps
        return cls(
            model=None
            if model is None or estimate.bytes_of_dense is None
            else ModelEstimate(
                parameters=model.parameters,
                linear_parameters=model.linear,
                dtype=model.dtype,
                dense_bytes=estimate.bytes_of_dense,
            ),
            tokens=estimate.tokens,
            targets=[
                TargetEstimate(name=each.name, size=_size(each.size)) for each in estimate.targets
            ],
            workers=WorkersEstimate.model_validate(estimate.placement)
            if estimate.placement
            else None,
            waits=estimate.waits,
            memory=MemoryEstimate.model_validate(estimate.memory) if estimate.memory else None,
            driver_memory=estimate.driver_memory,
            seconds=TimeEstimate(
                sum=sum(each.seconds for each in steps),
                steps=[StepEstimate.model_validate(each) for each in steps],
                measured_jobs=estimate.measured_jobs,
            )
            if steps
            else None,
            problems=[ProblemItem.model_validate(each) for each in estimate.problems],
            unknown=[Unknown.model_validate(each) for each in estimate.unknown],
        )


def _size(size: TargetSize | None) -> ArtifactSize | None:
    return None if size is None else ArtifactSize.model_validate(size)

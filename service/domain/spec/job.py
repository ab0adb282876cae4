"""The specification of a whole job."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from service.domain.labels import Labels
from service.domain.spec.calibration import Calibration, Recovery
from service.domain.spec.evaluation import HELD_OUT, Evaluation
from service.domain.spec.fields import NAME_PATTERN, Body, array, refuse_repeated
from service.domain.spec.sources import ModelSource
from service.domain.spec.targets import QualityTarget, Target, bits_of
from service.domain.states import Step

MAX_TARGETS = 32
MAX_WORKERS = 1024
MAX_LIMIT_SECONDS = 30 * 86_400
MAX_PRIORITY = 100

ACCELERATOR_TYPE_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"
"""The value of a label of Ray; its operators `!` and `in(…)` are not for jobs."""

Method = Literal["impact-kron", "impact", "afm", "svd-llm", "asvd", "fwsvd", "svd"]
AllocationKind = Literal["global", "uniform"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
MixedPrecision = Literal["no", "bf16", "auto"]


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
        tuple[Target, ...], Field(min_length=1, max_length=MAX_TARGETS), array(MAX_TARGETS)
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
        if recovery and calibration and recovery.asked(calibration) < recovery.least:
            raise PydanticCustomError(
                "invalid_parameter",
                "needs two batches of {size} sequences, one of them to be kept aside, and asks for "
                "{count} sequences: set 'recovery.sequences' to {least} or more, or a smaller "
                "'recovery.batch_size'",
                {
                    "size": recovery.batch_size,
                    "count": recovery.asked(calibration),
                    "least": recovery.least,
                },
            )
        return recovery

    @field_validator("targets")
    @classmethod
    def _targets_are_distinct(cls, targets: tuple[Target, ...]) -> tuple[Target, ...]:
        names = [target.name for target in targets]
        refuse_repeated(names, "duplicate_target", "the target '{name}' occurs twice")
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

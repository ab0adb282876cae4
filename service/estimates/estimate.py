"""Estimates a job: the sizes of its targets, its workers, memory and time, and what is wrong.

It reads headers, the dashboard of Ray and the jobs database; no weight is loaded, and nothing runs.
What cannot be said is named with the reason.

    specification ── checks of a submission ──> refusals, headers ──> shapes ──> sizes, memory
    Ray's machines ──> placement ─────────────────────────────────────────────> seconds
    jobs that have succeeded ──> what they took, beside what the cost model says ─┘
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.cluster.ray_jobs import RayCluster
from service.domain.costs.machines import cluster_of
from service.domain.costs.shapes import Model, ShapesUnknown
from service.domain.costs.sizes import Sizes, TargetSize
from service.domain.costs.steps import peak_driver_bytes, peak_worker_bytes, step_costs
from service.domain.costs.times import step_times
from service.domain.placement import Machine, Placement, plan_placement
from service.domain.spec.evaluation import LmEval
from service.domain.spec.job import JobSpec
from service.domain.spec.targets import QualityTarget, SizeTarget
from service.domain.states import IN_FLIGHT, JobState, Step
from service.errors import (
    ClusterUnavailable,
    EigenpressError,
    Failure,
    InsufficientResources,
    SubmissionCheckTimeout,
    TargetUnreachable,
)
from service.estimates.history import measured_jobs
from service.estimates.models import model_of
from service.estimates.speeds import comparable, corrected
from service.inputs.checks import Findings, SubmissionChecks
from service.inputs.models import inspection
from service.inputs.models.files import ModelHeaders
from service.settings import Settings
from service.store.store import Store
from service.store.users import Users


@dataclass(frozen=True)
class Unknown:
    """What an estimate does not say, by the field of the request or the answer, and the reason."""

    field: str
    reason: str


@dataclass(frozen=True)
class TargetEstimate:
    """A target by its name, and the size of its artifact; None if it is not known."""

    name: str
    size: TargetSize | None


@dataclass(frozen=True)
class StepEstimate:
    """A step's seconds, and the resource that it waits for."""

    step: Step
    seconds: float
    waits_for: str


@dataclass(frozen=True)
class Memory:
    """The most bytes that a worker takes beyond its program, and what a machine has too little of.

    With a GPU the worker's share of the host's memory comes beside the GPU's.
    """

    worker: int
    worker_gpu: int | None
    worker_files: int
    too_little: dict[Step, list[str]]


@dataclass
class Estimate:
    """What is known of a job before it runs."""

    tokens: int  # of calibration
    model: Model | None = None
    bytes_of_dense: int | None = None
    targets: list[TargetEstimate] = field(default_factory=list)
    placement: Placement | None = None
    waits: str | None = None
    """Why the job would not begin at once."""
    memory: Memory | None = None
    driver_memory: int | None = None
    steps: list[StepEstimate] = field(default_factory=list)
    measured_jobs: int = 0
    problems: list[Failure] = field(default_factory=list)
    unknown: list[Unknown] = field(default_factory=list)


class Estimates:
    """Estimates jobs. Threads may share it."""

    def __init__(
        self, settings: Settings, store: Store, cluster: RayCluster, checks: SubmissionChecks
    ) -> None:
        self._settings = settings
        self._store = store
        self._cluster = cluster
        self._checks = checks

    async def of(self, spec: JobSpec, users: Users) -> Estimate:
        """What is known of a job of these users. Raises DatabaseUnavailable."""
        findings = await self._checks.find(spec, users)
        return await asyncio.to_thread(self._estimated, spec, findings, users)

    def _estimated(self, spec: JobSpec, findings: Findings, users: Users) -> Estimate:
        calibration = spec.calibration
        estimate = Estimate(calibration.sequences * calibration.sequence_length)
        estimate.problems += [error.failure() for error in findings.refusals]
        _add_unchecked(estimate, spec, findings)
        estimate.model = model = self._model(findings, estimate)
        if model is not None:
            _add_sizes(estimate, model, spec)
            estimate.driver_memory = round(peak_driver_bytes(model))
        machines = self._place(estimate, spec)
        estimate.waits = estimate.waits or self._queue(users)
        if model is None or estimate.placement is None:
            missing = "the model's shapes" if model is None else "the workers"
            reason = f"This follows from {missing}, which are not known."
            estimate.unknown += [Unknown("memory", reason), Unknown("seconds", reason)]
        else:
            self._add_costs(estimate, model, spec, estimate.placement, machines)
        return estimate

    def _model(self, findings: Findings, estimate: Estimate) -> Model | None:
        if findings.headers is None:
            answered = any(_concerns_model(error) for error in findings.refusals)
            why = "Its files could not be read." if answered else "The hub does not answer."
            estimate.unknown.append(Unknown("model", why))
            return None
        try:
            return model_of(findings.headers)
        except ShapesUnknown as error:
            estimate.unknown.append(Unknown("model", f"{error}."))
            return None

    def _place(self, estimate: Estimate, spec: JobSpec) -> list[Machine]:
        """Say which workers the job gets; return the machines that it may use."""
        wanted = spec.accelerator_type
        try:
            machines = [
                each for each in self._cluster.machines() if wanted in (None, each.accelerator_type)
            ]
            estimate.placement = plan_placement(
                spec.workers,
                [each.resources for each in machines],
                self._settings.max_running_jobs,
                accelerator_type=wanted,
            )
        except ClusterUnavailable as error:
            estimate.waits = error.detail
            estimate.unknown.append(Unknown("workers", error.detail))
            return []
        except InsufficientResources as error:
            estimate.problems.append(error.failure())
            estimate.unknown.append(
                Unknown("workers", "Only the job finds out whether an autoscaler adds machines.")
            )
        return machines

    def _queue(self, users: Users) -> str | None:
        """Why the job would wait for other jobs of its tenant, or of the installation."""
        settings = self._settings
        limits = (
            (users, settings.max_running_jobs_per_tenant),
            (self._store.records, settings.max_running_jobs),
        )
        for records, most in limits:
            if most is not None:
                running, queued = records.count(IN_FLIGHT), records.count({JobState.QUEUED})
                if running + queued >= most:
                    places = f"{running} of {most} places for running jobs are taken"
                    return f"{places}; in the queue: {queued}."
        return None

    def _add_costs(
        self,
        estimate: Estimate,
        model: Model,
        spec: JobSpec,
        placement: Placement,
        machines: Sequence[Machine],
    ) -> None:
        memory = self._settings.worker_memory_bytes, self._settings.model_memory_bytes
        cluster = cluster_of(placement, machines, *memory)
        costs = step_costs(model, spec, cluster)
        estimate.memory = Memory(
            worker=round(peak_worker_bytes(model, spec, cluster)),
            worker_gpu=(
                round(max(cost.device_held for cost in costs.values())) if cluster.gpus else None
            ),
            worker_files=round(max(cost.files_held for cost in costs.values())),
            too_little={
                step: found for step, cost in costs.items() if (found := cost.exceeded(cluster))
            },
        )
        times = step_times(model, costs, cluster)
        predicted = {step: each.seconds for step, each in times.items()}
        jobs = comparable(predicted, measured_jobs(self._store.records, spec, placement))
        estimate.measured_jobs = len(jobs)
        seconds = corrected(predicted, jobs)
        estimate.steps = [
            StepEstimate(step, seconds[step], each.waits_for) for step, each in times.items()
        ]
        if not jobs:
            kind = "GPUs in the manner of an H100" if cluster.gpus else "cores with AVX-512 BF16"
            estimate.unknown.append(
                Unknown(
                    "seconds",
                    "No job that could be compared has succeeded here on such workers: the "
                    f"seconds are those of the cost model's machines, with {kind}.",
                )
            )
        if spec.evaluation.tasks or spec.evaluation.decode_tokens:
            estimate.unknown.append(
                Unknown("seconds", "The time of tasks and of the decoding speed is left out.")
            )


def _concerns_model(error: EigenpressError) -> bool:
    """Whether a refusal is the reason why a model's headers are missing."""
    return isinstance(error, SubmissionCheckTimeout) or (error.param or "").startswith("model")


def _add_unchecked(estimate: Estimate, spec: JobSpec, findings: Findings) -> None:
    """Name what only a worker sees."""
    unknown = estimate.unknown
    if not isinstance(findings.headers, ModelHeaders):
        if findings.headers is not None:
            unknown.append(Unknown("model", "A worker is the first to read a GGUF file's tensors."))
    elif not inspection.available():
        unknown.append(
            Unknown(
                "model",
                "transformers is not installed beside the API: a worker is the first to see "
                "whether it takes the model and its tokenizer.",
            )
        )
    unknown.append(
        Unknown(
            "calibration.data",
            f"Whether the text has {estimate.tokens} tokens is seen when it is tokenized.",
        )
    )
    if any(isinstance(task, LmEval) for task in spec.evaluation.tasks):
        unknown.append(
            Unknown("evaluation.tasks", "Only a worker shows whether lm-eval is installed there.")
        )


def _add_sizes(estimate: Estimate, model: Model, spec: JobSpec) -> None:
    """Say the size of every target, and which are out of reach."""
    sizes = Sizes(model, spec)
    estimate.bytes_of_dense = sizes.bytes_of_dense
    for number, target in enumerate(spec.targets):
        size, param = None, f"targets.{number}"
        try:
            size = sizes.of(target, param)
        except TargetUnreachable as error:
            estimate.problems.append(error.failure())
            estimate.unknown.append(Unknown(param, "It is out of reach."))
        else:
            if isinstance(target, QualityTarget):
                reason = "Measurements of the calibrated model decide the size."
                estimate.unknown.append(Unknown(param, reason))
            elif isinstance(target, SizeTarget) and target.optimize == "speed":
                reason = "The size may be lower: only ranks that save enough time count."
                estimate.unknown.append(Unknown(param, reason))
        estimate.targets.append(TargetEstimate(target.name, size))
    for number, keep in enumerate(spec.evaluation.curve):
        try:
            sizes.of_keep(SizeTarget(keep=keep), f"evaluation.curve.{number}")
        except TargetUnreachable as error:
            estimate.problems.append(error.failure())

"""The types of the API's answers, as a client sees them: plain JSON that a type checker knows.

They cost nothing when the program runs, and an answer of a newer server may have more fields. A
test compares them with the OpenAPI document.
"""

from __future__ import annotations

from typing import Any, TypedDict

Json = dict[str, Any]
"""What has no type of its own: a specification, a report, the data of an event."""


class StepProgress(TypedDict):
    """The progress of one step of the current attempt."""

    step: str
    done: int
    total: int
    unit: str
    started_at: str
    finished_at: str | None
    seconds_left: float | None


class StepToCome(TypedDict):
    """A step of the current attempt that has not begun."""

    step: str
    seconds: float | None


class TimeLeft(TypedDict):
    """How long the job still takes; None is what is not known."""

    seconds: float | None
    to_come: list[StepToCome]
    reason: str | None


class JobError(TypedDict):
    """Why a job, or one of its attempts, failed."""

    code: str
    detail: str
    param: str | None


class Links(TypedDict):
    """Paths on the server, and the URL of the attempt in Ray's dashboard."""

    self: str
    events: str
    artifacts: str
    report: str
    ray_dashboard: str | None


class JobWarning(TypedDict):
    """What the current attempt did otherwise than expected."""

    type: str
    message: str


class Submitter(TypedDict):
    """The API key that submitted a job."""

    key_id: str
    key_name: str | None


class Job(TypedDict):
    """A job: its specification, its state and its progress."""

    id: str
    name: str | None
    state: str
    spec: Json
    attempt: int
    created_at: str
    submitted_by: Submitter | None
    started_at: str | None
    finished_at: str | None
    steps: list[StepProgress]
    time_left: TimeLeft | None
    available_at: str | None
    error: JobError | None
    last_error: JobError | None
    warnings: list[JobWarning]
    links: Links


class JobPage(TypedDict):
    """Jobs, newest first."""

    jobs: list[Job]
    next_cursor: str | None


class Event(TypedDict):
    """Something that happened to a job."""

    id: int
    attempt: int | None
    at: str
    type: str
    message: str
    data: Json


class EventPage(TypedDict):
    """Events, oldest first."""

    events: list[Event]
    next_after: int


class LogPage(TypedDict):
    """A part of the log of one process. Offsets count bytes from the log's beginning."""

    attempt: int
    source: str
    sources: list[str]
    start: int
    text: str
    next_after: int
    complete: bool
    missing: str | None


class ArtifactFile(TypedDict):
    """One file of an artifact, with a presigned URL."""

    path: str
    size: int
    sha256: str
    url: str


class Artifact(TypedDict):
    """A compressed model in the bucket."""

    name: str
    uri: str
    bytes: int
    files: list[ArtifactFile]
    expires_at: str


class ArtifactList(TypedDict):
    """A job's artifacts, in the order of its targets."""

    artifacts: list[Artifact]


class ModelEstimate(TypedDict):
    """The dense model."""

    parameters: int
    linear_parameters: int
    dtype: str
    dense_bytes: int


class ArtifactSize(TypedDict):
    """The most that an artifact's weights have."""

    parameters: int
    bytes: int
    linear_parameters: int
    linear_bytes: int


class TargetEstimate(TypedDict):
    """A target and the size of its artifact; None if calibration decides it."""

    name: str
    size: ArtifactSize | None


class WorkersEstimate(TypedDict):
    """The workers that the job would get, and what Ray reserves for each."""

    workers: int
    cpus: int
    gpus: int
    accelerator_type: str | None


class MemoryEstimate(TypedDict):
    """The peaks of each process, in bytes."""

    worker: int
    worker_gpu: int | None
    worker_files: int
    too_little: dict[str, list[str]]


class StepEstimate(TypedDict):
    """The time of one step."""

    step: str
    seconds: float
    waits_for: str


class TimeEstimate(TypedDict):
    """The time of the job, once it has its workers."""

    sum: float
    steps: list[StepEstimate]
    measured_jobs: int


class ProblemItem(TypedDict):
    """One of several mistakes in a request."""

    code: str
    detail: str
    param: str | None


class Unknown(TypedDict):
    """What the estimate cannot say."""

    field: str
    reason: str


class Estimate(TypedDict):
    """What a job would make and take. None is what is not known."""

    model: ModelEstimate | None
    tokens: int
    targets: list[TargetEstimate]
    workers: WorkersEstimate | None
    waits: str | None
    memory: MemoryEstimate | None
    driver_memory: int | None
    seconds: TimeEstimate | None
    problems: list[ProblemItem]
    unknown: list[Unknown]


class Key(TypedDict):
    """An API key, without its secret."""

    id: str
    tenant: str
    scope: str
    name: str | None
    created_at: str
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None


class CreatedKey(Key):
    """A new key; nothing shows its text again."""

    key: str


class KeyPage(TypedDict):
    """Keys, by id."""

    keys: list[Key]
    next_cursor: str | None


class CurrentKey(TypedDict):
    """The key of the request."""

    id: str
    tenant: str
    scope: str


class AuditRecord(TypedDict):
    """A change that a request has made."""

    id: int
    at: str
    tenant: str
    key_id: str
    action: str
    subject: str
    address: str | None


class AuditPage(TypedDict):
    """Changes, newest first."""

    records: list[AuditRecord]
    next_cursor: str | None


class Tenant(TypedDict):
    """A tenant, its limits and the places that its jobs may read."""

    name: str
    created_at: str | None
    max_running_jobs: int | None
    max_queued_jobs: int | None
    max_stored_bytes: int | None
    allowed_roots: list[str] | None
    allowed_s3_prefixes: list[str] | None


class TenantPage(TypedDict):
    """Tenants, by name."""

    tenants: list[Tenant]
    next_cursor: str | None


class Credential(TypedDict):
    """What a tenant's jobs read private models and texts with, without its secrets."""

    name: str
    kind: str
    endpoint: str | None
    prefixes: list[str] | None
    region: str | None
    key_id_end: str | None
    created_at: str


class CredentialList(TypedDict):
    """The credentials of a tenant, by name."""

    credentials: list[Credential]


class Usage(TypedDict):
    """What a tenant has at the moment."""

    running_jobs: int
    queued_jobs: int
    stored_bytes: int


class Webhook(TypedDict):
    """A receiver of messages about the jobs' events."""

    id: str
    url: str
    description: str | None
    events: list[str]
    created_at: str
    enabled: bool
    disabled: str | None
    failing_since: str | None


class WebhookWithSecret(Webhook):
    """A webhook with its secret, which no later answer shows."""

    secret: str


class WebhookPage(TypedDict):
    """Webhooks, newest first."""

    webhooks: list[Webhook]
    next_cursor: str | None


class Delivery(TypedDict):
    """A message to a webhook, and how far it has come."""

    id: str
    type: str
    job_id: str | None
    state: str
    created_at: str
    attempts: int
    status_code: int | None
    error: str | None
    next_attempt_at: str | None
    finished_at: str | None


class DeliveryPage(TypedDict):
    """Deliveries, newest first."""

    deliveries: list[Delivery]
    next_cursor: str | None


class Dataset(TypedDict):
    """A text that was uploaded and checked."""

    id: str
    name: str | None
    format: str
    text_field: str
    bytes: int
    documents: int
    empty_rows: int | None
    tokens: int | None
    sha256: str
    created_at: str


class DatasetPage(TypedDict):
    """Datasets, newest first."""

    datasets: list[Dataset]
    next_cursor: str | None

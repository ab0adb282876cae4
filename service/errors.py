"""Everything that can go wrong with a job, by name.

    EigenpressError
    ├── UserError                    the request or its inputs are at fault; never retried
    │   ├── InvalidParameter
    │   ├── PathNotAllowed
    │   ├── ModelNotFound
    │   ├── ModelConfigMissing
    │   ├── ModelInvalid
    │   ├── NotACausalLM
    │   ├── UnsafeWeights
    │   ├── UnsupportedLayer
    │   ├── DataNotFound
    │   ├── DataInvalid
    │   ├── CalibrationTooShort
    │   ├── TargetUnreachable
    │   ├── CodeExecutionForbidden
    │   ├── IdempotencyKeyReused
    │   ├── WebhookUrlForbidden
    │   ├── QueueTimeExceeded
    │   └── RunTimeExceeded
    ├── KeyMissing                   the request has no key
    ├── KeyInvalid                   its key is unknown, revoked or expired
    ├── ScopeInsufficient            its key does not allow what was asked
    ├── TooManyRequests
    ├── TooManyFollowers             the tenant follows as many streams as it may; try again later
    ├── QuotaExceeded                the tenant has as much as it may have
    ├── NotFound                     nothing that the tenant may see has this id
    │   ├── JobNotFound
    │   ├── LogNotFound              no such attempt of the job, or no such log of the attempt
    │   ├── ArtifactNotFound
    │   ├── FileNotFound             an artifact has no such file
    │   ├── DatasetNotFound
    │   ├── WebhookNotFound
    │   ├── DeliveryNotFound
    │   ├── KeyNotFound
    │   └── TenantNotFound
    ├── Conflict                     the state of something does not allow what was asked
    │   ├── JobConflict
    │   ├── DatasetInUse             a job that waits or runs names it
    │   ├── UploadAbandoned          a write by an upload that was taken for dead
    │   ├── WebhookDisabled          it sends nothing until its user enables it
    │   ├── WebhookLimitReached
    │   └── TenantExists
    ├── DatasetTooLarge
    ├── AttemptStale                 a write by an attempt that is not the current one
    ├── ArtifactCorrupt              bytes that do not match their manifest
    ├── ArtifactMismatch             an artifact that is not the model that was compressed
    ├── ArtifactConflict             another attempt has already published it
    ├── ObjectMissing                no object in the bucket has this key
    ├── ObjectChanged                an object was replaced while it was read
    ├── SolveFailed                  an eigenproblem without a finite solution
    └── InfrastructureError          a machine or a service is at fault; retried
        ├── StorageUnavailable
        ├── StorageFull
        ├── StorageReadOnly      not retried: an administrator must grant write access
        ├── BucketMissing            not retried: an administrator must create it
        ├── StorageCredentialsInvalid  not retried: an administrator must correct them
        ├── SubmissionCheckTimeout
        ├── UploadsBusy
        ├── ClusterUnavailable
        ├── SubmissionRefused        not retried: the cluster answers, but refuses to run the driver
        ├── DatabaseUnavailable
        ├── SchemaMismatch           not retried: an administrator must upgrade
        ├── VersionMismatch          not retried: likewise
        ├── SpecificationUnknown     not retried: likewise
        ├── EncryptionKeyMissing     not retried: an administrator must set it
        ├── EncryptionKeyWrong       not retried: an administrator must add the key in use before
        ├── InsufficientResources    not retried
        ├── WorkerLost
        ├── DiskFull
        ├── NodeLost
        ├── OutOfMemory          not retried: it would run out again
        ├── MemoryTaken
        ├── SandboxUnavailable   not retried: the machine needs another kernel
        ├── HarnessMissing       not retried: an administrator must install it
        ├── AttemptLost              the attempt ended and its driver reported no result
        │   ├── ClusterRestarted
        │   ├── DriverKilled
        │   ├── DriverStopped
        │   ├── DriverNotStarted
        │   └── LeaseLapsed
        ├── HubUnavailable
        └── FollowersFull            the API process sends as many streams as it may

An error's docstring is its default message. A detail may repeat what a stranger wrote, such as the
name of a file: its control characters are escaped. `code` is stable and part of the API, `param`
names the field of the request at fault (``model.path``, ``targets.0.keep``), if one is.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import ClassVar

from service.printable import one_line, printable, shortened

MAX_DETAIL_CHARACTERS = 20_000
"""A longer detail, such as one that repeats an input, is cut."""


@dataclass(frozen=True)
class Failure:
    """The record of an error that ended an attempt."""

    code: str
    detail: str
    param: str | None = None
    retryable: bool = False


class EigenpressError(Exception):
    """Something went wrong inside Eigenpress."""

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str | None = None, *, param: str | None = None) -> None:
        whole = detail or inspect.cleandoc(type(self).__doc__ or "")
        shown = printable(shortened(whole, MAX_DETAIL_CHARACTERS))
        self.detail = shortened(shown, MAX_DETAIL_CHARACTERS)
        self.param = None if param is None else printable(param)
        super().__init__(self.detail)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the pickling by which Ray carries an error between processes."""
        return _rebuild, (type(self), self.detail, self.param)

    def failure(self) -> Failure:
        return Failure(self.code, self.detail, self.param, self.retryable)


def _rebuild(kind: type[EigenpressError], detail: str, param: str | None) -> EigenpressError:
    return kind(detail, param=param)


class UserError(EigenpressError):
    """The request cannot be carried out as it stands."""

    code = "invalid_request"

    def __init__(self, detail: str | None = None, *, param: str | None = None) -> None:
        super().__init__(detail and one_line(detail), param=param)


class InvalidParameter(UserError):
    """A field of the request has a value that is not allowed."""

    code = "invalid_parameter"


class PathNotAllowed(UserError):
    """The path is outside the folders that this server may read."""

    code = "path_not_allowed"


class ModelNotFound(UserError):
    """There is no model at the given place."""

    code = "model_not_found"


class ModelConfigMissing(UserError):
    """The model's folder has no config.json."""

    code = "model_config_missing"


class ModelInvalid(UserError):
    """The model's files cannot be read."""

    code = "model_invalid"


class NotACausalLM(UserError):
    """The model is not a causal language model."""

    code = "not_a_causal_lm"


class UnsafeWeights(UserError):
    """The model's weights are pickled; only safetensors and GGUF are read."""

    code = "unsafe_weights"


class UnsupportedLayer(UserError):
    """The model has a layer of a kind that cannot be compressed."""

    code = "unsupported_layer"


class DataNotFound(UserError):
    """There is no text at the given place."""

    code = "data_not_found"


class DataInvalid(UserError):
    """The text cannot be read."""

    code = "data_invalid"


class CalibrationTooShort(UserError):
    """The calibration text holds fewer tokens than the job asks for."""

    code = "calibration_too_short"


class TargetUnreachable(UserError):
    """No choice of ranks or bits meets the target."""

    code = "target_unreachable"


class CodeExecutionForbidden(UserError):
    """This server does not run code that models write."""

    code = "code_execution_forbidden"


class IdempotencyKeyReused(UserError):
    """This Idempotency-Key came with another body before: use a new key for a new job."""

    code = "idempotency_key_reused"


class WebhookUrlForbidden(UserError):
    """The server sends nothing to this URL."""

    code = "webhook_url_forbidden"


class QueueTimeExceeded(UserError):
    """The job waited longer than its limits.queue_seconds."""

    code = "queue_time_exceeded"


class RunTimeExceeded(UserError):
    """The job ran longer than its limits.run_seconds."""

    code = "run_time_exceeded"


class KeyMissing(EigenpressError):
    """The request has no key. Send one as 'Authorization: Bearer ep_...'."""

    code = "key_missing"


class KeyInvalid(EigenpressError):
    """The key is unknown, revoked or has expired."""

    code = "key_invalid"


class ScopeInsufficient(EigenpressError):
    """The key's scope does not allow this request."""

    code = "scope_insufficient"


class TooManyRequests(EigenpressError):
    """There were too many requests with this key."""

    code = "too_many_requests"
    retry_after_seconds = 1


class QuotaExceeded(EigenpressError):
    """The tenant has as much as it may have."""

    code = "quota_exceeded"


class NotFound(EigenpressError):
    """There is nothing with this id."""

    code = "not_found"


class KeyNotFound(NotFound):
    """There is no key with this id."""

    code = "key_not_found"


class TenantNotFound(NotFound):
    """There is no tenant with this name."""

    code = "tenant_not_found"


class Conflict(EigenpressError):
    """The state of things does not allow this."""

    code = "conflict"


class TenantExists(Conflict):
    """There is a tenant with this name already."""

    code = "tenant_exists"


class JobNotFound(NotFound):
    """There is no job with this id."""

    code = "job_not_found"


class ArtifactNotFound(NotFound):
    """The job has no artifact with this name."""

    code = "artifact_not_found"


class FileNotFound(NotFound):
    """The artifact has no file with this path."""

    code = "file_not_found"


class LogNotFound(NotFound):
    """The job has no such attempt, or the attempt no such log."""

    code = "log_not_found"


class DatasetNotFound(NotFound):
    """There is no dataset with this id."""

    code = "dataset_not_found"


class TooManyFollowers(EigenpressError):
    """Your tenant follows as many streams of events as it may at a time: close some of them."""

    code = "too_many_followers"
    retryable = True


class DatasetInUse(Conflict):
    """A job that waits or runs names the dataset."""

    code = "dataset_in_use"


class DatasetTooLarge(EigenpressError):
    """The dataset is larger than this server accepts."""

    code = "dataset_too_large"


class UploadAbandoned(Conflict):
    """The upload was taken for dead, and what it had sent was removed: upload the file again."""

    code = "upload_abandoned"


class JobConflict(Conflict):
    """The job's state does not allow this."""

    code = "job_conflict"


class WebhookNotFound(NotFound):
    """There is no webhook with this id."""

    code = "webhook_not_found"


class DeliveryNotFound(NotFound):
    """The webhook has no delivery with this id."""

    code = "delivery_not_found"


class WebhookDisabled(Conflict):
    """The webhook is disabled: enable it first."""

    code = "webhook_disabled"


class WebhookLimitReached(Conflict):
    """The tenant has as many webhooks as it may have: delete one first."""

    code = "webhook_limit_reached"


class AttemptStale(EigenpressError):
    """This attempt is no longer the job's current one; its writes are refused."""

    code = "attempt_stale"


class ArtifactCorrupt(EigenpressError):
    """A file does not match the size and sha256 that its manifest states."""

    code = "artifact_corrupt"


class ArtifactMismatch(EigenpressError):
    """An artifact is not the model that was compressed. Nothing was published."""

    code = "artifact_mismatch"


class ArtifactConflict(EigenpressError):
    """Another attempt has already published this artifact."""

    code = "artifact_conflict"


class ObjectMissing(EigenpressError):
    """The bucket has no object with this key."""

    code = "object_missing"


class ObjectChanged(EigenpressError):
    """An object in a bucket was replaced while it was read."""

    code = "object_changed"


class SolveFailed(EigenpressError):
    """An eigenproblem has no finite solution."""

    code = "solve_failed"


class InfrastructureError(EigenpressError):
    """A machine or a service that Eigenpress depends on failed."""

    code = "infrastructure_error"
    retryable = True


class StorageUnavailable(InfrastructureError):
    """The S3 server does not answer."""

    code = "storage_unavailable"


class StorageFull(InfrastructureError):
    """The S3 bucket is full: remove objects from it or raise its quota."""

    code = "storage_full"


class StorageReadOnly(InfrastructureError):
    """The S3 server denies these credentials write access to the bucket."""

    code = "storage_read_only"
    retryable = False


class BucketMissing(InfrastructureError):
    """The S3 bucket does not exist."""

    code = "bucket_missing"
    retryable = False


class StorageCredentialsInvalid(InfrastructureError):
    """The S3 server refuses the credentials."""

    code = "storage_credentials_invalid"
    retryable = False


class SubmissionCheckTimeout(InfrastructureError):
    """The checks of the submission took too long; no job was made. Submit it again later."""

    code = "submission_check_timeout"


class UploadsBusy(InfrastructureError):
    """This server receives as many uploads as it can at a time; try again later."""

    code = "uploads_busy"


class ClusterUnavailable(InfrastructureError):
    """The Ray cluster does not answer."""

    code = "cluster_unavailable"


class SubmissionRefused(InfrastructureError):
    """The Ray cluster refuses to run the job's driver."""

    code = "submission_refused"
    retryable = False


class DatabaseUnavailable(InfrastructureError):
    """The jobs database cannot be read or written."""

    code = "database_unavailable"


class SchemaMismatch(InfrastructureError):
    """This process and the jobs database have different versions: upgrade the older one."""

    code = "schema_mismatch"
    retryable = False


class VersionMismatch(InfrastructureError):
    """The nodes of the Ray cluster have different versions: install the same one on all of them."""

    code = "version_mismatch"
    retryable = False


class SpecificationUnknown(InfrastructureError):
    """A newer version of Eigenpress wrote this specification: upgrade the process that reads it."""

    code = "specification_unknown"
    retryable = False


class EncryptionKeyMissing(InfrastructureError):
    """This server keeps no secrets: an administrator must set EIGENPRESS_ENCRYPTION_KEY."""

    code = "encryption_key_missing"
    retryable = False


class EncryptionKeyWrong(InfrastructureError):
    """A stored secret was encrypted with a key that is not in EIGENPRESS_ENCRYPTION_KEY."""

    code = "encryption_key_wrong"
    retryable = False


class InsufficientResources(InfrastructureError):
    """The Ray cluster is too small for the workers that the job asks for."""

    code = "insufficient_resources"
    retryable = False


class WorkerLost(InfrastructureError):
    """A worker's process died; the machine may have run out of memory."""

    code = "worker_lost"


class DiskFull(InfrastructureError):
    """A machine's disk is full: make room there, or set EIGENPRESS_DATA_DIR to a larger one."""

    code = "disk_full"


class OutOfMemory(InfrastructureError):
    """A worker ran out of memory: lower calibration.batch_size or the number of workers."""

    code = "out_of_memory"
    retryable = False


class MemoryTaken(InfrastructureError):
    """Processes other than the job's took the memory of a worker's machine."""

    code = "memory_taken"


class SandboxUnavailable(InfrastructureError):
    """A worker's machine cannot confine the programs that models write."""

    code = "sandbox_unavailable"
    retryable = False


class HarnessMissing(InfrastructureError):
    """The workers lack lm-eval: install eigenpress[eval] where Ray runs."""

    code = "harness_missing"
    retryable = False


class NodeLost(InfrastructureError):
    """A node of the Ray cluster was lost: check whether its machine still runs."""

    code = "node_lost"


class AttemptLost(InfrastructureError):
    """The attempt ended without a result: its driver or its cluster was lost."""

    code = "attempt_lost"


class ClusterRestarted(AttemptLost):
    """Ray does not know the attempt: its cluster was restarted, which ends its jobs."""

    code = "cluster_restarted"


class DriverKilled(AttemptLost):
    """The attempt's driver was killed: check whether Ray's head node ran out of memory."""

    code = "driver_killed"


class DriverStopped(AttemptLost):
    """Somebody stopped the attempt on Ray; to end a job for good, cancel it here."""

    code = "driver_stopped"


class DriverNotStarted(AttemptLost):
    """Ray could not start the attempt's driver: check whether its head node has room for it."""

    code = "driver_not_started"


class LeaseLapsed(AttemptLost):
    """The attempt sent no heartbeat for too long: it hangs, or cannot reach the database."""

    code = "lease_lapsed"


class HubUnavailable(InfrastructureError):
    """The model hub does not answer."""

    code = "hub_unavailable"


class FollowersFull(InfrastructureError):
    """This server sends as many streams of events as it may: read pages, or try again later."""

    code = "followers_full"

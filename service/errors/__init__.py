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
    │   ├── TenantNotFound
    │   └── CredentialNotFound
    ├── Conflict                     the state of something does not allow what was asked
    │   ├── JobConflict
    │   ├── DatasetInUse             a job that waits or runs names it
    │   ├── UploadAbandoned          a write by an upload that was taken for dead
    │   ├── WebhookDisabled          it sends nothing until its user enables it
    │   ├── WebhookLimitReached
    │   ├── TenantExists
    │   └── CredentialConflict       another one of the tenant is for this place
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

from service.errors.attempts import (
    ArtifactConflict,
    ArtifactCorrupt,
    ArtifactMismatch,
    AttemptStale,
    ObjectChanged,
    ObjectMissing,
    SolveFailed,
)
from service.errors.base import (
    MAX_DETAIL_CHARACTERS,
    EigenpressError,
    Failure,
)
from service.errors.infrastructure import (
    AttemptLost,
    BucketMissing,
    ClusterRestarted,
    ClusterUnavailable,
    DatabaseUnavailable,
    DiskFull,
    DriverKilled,
    DriverNotStarted,
    DriverStopped,
    EncryptionKeyMissing,
    EncryptionKeyWrong,
    FollowersFull,
    HarnessMissing,
    HubUnavailable,
    InfrastructureError,
    InsufficientResources,
    LeaseLapsed,
    MemoryTaken,
    NodeLost,
    OutOfMemory,
    SandboxUnavailable,
    SchemaMismatch,
    SpecificationUnknown,
    StorageCredentialsInvalid,
    StorageFull,
    StorageReadOnly,
    StorageUnavailable,
    SubmissionCheckTimeout,
    SubmissionRefused,
    UploadsBusy,
    VersionMismatch,
    WorkerLost,
)
from service.errors.inputs import (
    CalibrationTooShort,
    CodeExecutionForbidden,
    DataInvalid,
    DataNotFound,
    IdempotencyKeyReused,
    InvalidParameter,
    ModelConfigMissing,
    ModelInvalid,
    ModelNotFound,
    NotACausalLM,
    PathNotAllowed,
    QueueTimeExceeded,
    RunTimeExceeded,
    TargetUnreachable,
    UnsafeWeights,
    UnsupportedLayer,
    UserError,
    WebhookUrlForbidden,
)
from service.errors.requests import (
    ArtifactNotFound,
    Conflict,
    CredentialConflict,
    CredentialNotFound,
    DatasetInUse,
    DatasetNotFound,
    DatasetTooLarge,
    DeliveryNotFound,
    FileNotFound,
    JobConflict,
    JobNotFound,
    KeyInvalid,
    KeyMissing,
    KeyNotFound,
    LogNotFound,
    NotFound,
    QuotaExceeded,
    ScopeInsufficient,
    TenantExists,
    TenantNotFound,
    TooManyFollowers,
    TooManyRequests,
    UploadAbandoned,
    WebhookDisabled,
    WebhookLimitReached,
    WebhookNotFound,
)

"""A machine or a service is at fault."""

from __future__ import annotations

from service.errors.base import EigenpressError


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

"""A request that the API does not carry out, because of who asks or of what there is."""

from __future__ import annotations

from service.errors.base import EigenpressError


class NotFound(EigenpressError):
    """There is nothing with this id."""

    code = "not_found"


class Conflict(EigenpressError):
    """The state of things does not allow this."""

    code = "conflict"


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


class KeyNotFound(NotFound):
    """There is no key with this id."""

    code = "key_not_found"


class TenantNotFound(NotFound):
    """There is no tenant with this name."""

    code = "tenant_not_found"


class TenantExists(Conflict):
    """There is a tenant with this name already."""

    code = "tenant_exists"


class CredentialNotFound(NotFound):
    """The tenant has no credential with this name."""

    code = "credential_not_found"


class CredentialConflict(Conflict):
    """Another credential of the tenant is for this place: change that one, or delete it first."""

    code = "credential_conflict"


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

"""What goes wrong inside an attempt, or with what it has made."""

from __future__ import annotations

from service.errors.base import EigenpressError


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

"""What a job has made: its artifacts, with URLs to download them by, and its report."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter

from api.access import ReaderDep
from api.routes import JobId, problems
from api.schemas.artifacts import Artifact, ArtifactFile, ArtifactList
from api.services import ServicesDep
from service.domain import job as jobs
from service.domain.manifest import MANIFEST_NAME, check_manifest, manifest_key
from service.domain.states import JobState
from service.errors import JobConflict
from service.storage.s3 import ObjectStorage
from service.store.users import Users

router = APIRouter(
    prefix="/v1/jobs/{job_id}",
    tags=["results"],
    responses=problems(401, 403, 404, 409, 422, 429, 503),
)


@router.get("/artifacts", summary="List a job's artifacts", responses=problems(410))
def artifacts(job_id: JobId, services: ServicesDep, caller: ReaderDep) -> ArtifactList:
    """Every file of every artifact, with its size, its sha256 and a presigned URL."""
    _require_success(job_id, caller.users)
    lifetime = services.settings.presigned_url_seconds
    expires_at = datetime.now(UTC) + timedelta(seconds=lifetime)
    return ArtifactList(
        artifacts=[
            _artifact(job_id, artifact, services.storage, lifetime, expires_at)
            for artifact in caller.users.artifacts(job_id)
        ]
    )


@router.get("/report", summary="Get a job's report")
def report(job_id: JobId, caller: ReaderDep) -> dict[str, Any]:
    """Sizes, perplexities, ranks and times: the same as `report.json` of every artifact."""
    _require_success(job_id, caller.users)
    return caller.users.report(job_id) or {}


def _require_success(job_id: str, users: Users) -> None:
    state = users.get(job_id).state
    if state is not JobState.SUCCEEDED:
        raise JobConflict(f"The job is {state}; only a job that has succeeded has results.")


def _artifact(
    job_id: str,
    artifact: jobs.Artifact,
    storage: ObjectStorage,
    lifetime_seconds: int,
    expires_at: datetime,
) -> Artifact:
    def file(entry: jobs.FileEntry, key: str) -> ArtifactFile:
        url = storage.presign(key, lifetime_seconds)
        return ArtifactFile(path=entry.path, size=entry.size, sha256=entry.sha256, url=url)

    key = manifest_key(job_id, artifact.name)
    manifest = _manifest(job_id, artifact, storage.get_bytes(key))
    files = [file(entry, artifact.prefix + entry.path) for entry in artifact.files]
    files.append(file(manifest, key))
    return Artifact(
        name=artifact.name,
        uri=f"s3://{storage.bucket}/{artifact.prefix}",
        bytes=sum(file.size for file in files),
        files=files,
        expires_at=expires_at,
    )


def _manifest(job_id: str, artifact: jobs.Artifact, content: bytes) -> jobs.FileEntry:
    """The manifest lists the other files but not itself, so it is read to be measured."""
    check_manifest(content, artifact, job_id)
    return jobs.FileEntry(MANIFEST_NAME, len(content), hashlib.sha256(content).hexdigest())

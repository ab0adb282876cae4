"""What a job has made: its artifacts, with URLs to download them by, and its report."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Path
from starlette.responses import HTMLResponse, RedirectResponse, Response

from api.access import ReaderDep
from api.routes import JobId, guarded, problems
from api.schemas import examples
from api.schemas.artifacts import Artifact, ArtifactFile, ArtifactList
from api.services import Services, ServicesDep
from service.domain import job as jobs
from service.domain.manifest import MANIFEST_NAME, check_manifest, manifest_key
from service.domain.states import JobState
from service.errors import ArtifactNotFound, FileNotFound, JobConflict
from service.printable import shortened
from service.report.page import policy
from service.report.page import report_page as render_report
from service.storage.s3 import ObjectStorage
from service.store.users import Users

router = APIRouter(
    prefix="/v1/jobs/{job_id}",
    tags=["results"],
    responses=guarded(404, 409),
)

ArtifactName = Annotated[
    str,
    Path(description="As its target's.", openapi_examples={"a size": {"value": "keep-0.8"}}),
]
FilePath = Annotated[
    str,
    Path(
        description="Of a file of the artifact.",
        openapi_examples={"weights": {"value": "model.safetensors"}},
    ),
]
REDIRECTS: dict[int | str, dict[str, Any]] = {
    302: {
        "description": "The file is at this address for a while.",
        "headers": {
            "Location": {
                "description": "A presigned URL of this one file.",
                "schema": {"type": "string", "format": "uri"},
            }
        },
    }
}


@router.get("/artifacts", summary="List a job's artifacts", responses=problems(410))
def artifacts(job_id: JobId, services: ServicesDep, caller: ReaderDep) -> ArtifactList:
    """Every file of every artifact, with its size, its sha256 and a presigned URL.

    There are no pages: a job has an artifact for each of its targets, which are at most 32.
    """
    return ArtifactList(
        artifacts=[
            _shown(job_id, artifact, services) for artifact in _published(job_id, caller.users)
        ]
    )


@router.get("/artifacts/{name}", summary="Get one artifact", responses=problems(410))
def artifact(
    job_id: JobId, name: ArtifactName, services: ServicesDep, caller: ReaderDep
) -> Artifact:
    """As in the list: its files with sizes, sha256 and presigned URLs."""
    return _shown(job_id, _named(name, job_id, caller.users), services)


@router.get(
    "/artifacts/{name}/files/{path:path}",
    summary="Download a file of an artifact",
    status_code=302,
    response_class=RedirectResponse,
    responses=REDIRECTS,
)
def artifact_file(
    job_id: JobId, name: ArtifactName, path: FilePath, services: ServicesDep, caller: ReaderDep
) -> RedirectResponse:
    """Redirects to a presigned URL of the file, which expires; this address stays.

    The bucket answers ranges, too: `curl -L -C -` resumes a download.
    """
    return _redirect(job_id, name, path, services, caller.users)


@router.head(
    "/artifacts/{name}/files/{path:path}",
    summary="Look at a file of an artifact",
    status_code=302,
    response_class=RedirectResponse,
    responses=REDIRECTS,
)
def artifact_file_head(
    job_id: JobId, name: ArtifactName, path: FilePath, services: ServicesDep, caller: ReaderDep
) -> RedirectResponse:
    """Redirects to a presigned URL for `HEAD`, where the bucket tells the file's size."""
    return _redirect(job_id, name, path, services, caller.users, head=True)


@router.get(
    "/report",
    summary="Get a job's report",
    responses={200: {"content": {"application/json": {"example": examples.REPORT}}}},
)
def report(job_id: JobId, caller: ReaderDep) -> dict[str, Any]:
    """Sizes, perplexities, ranks and times: the same as `report.json` of every artifact."""
    _require_success(job_id, caller.users)
    return caller.users.report(job_id) or {}


@router.get(
    "/report.html",
    summary="Get a job's report as a page",
    response_class=Response,
    responses={
        200: {
            "description": "One file, which opens without a network.",
            "content": {
                "text/html": {"schema": {"type": "string"}, "example": "<!doctype html> ..."}
            },
        }
    },
)
def report_page(job_id: JobId, caller: ReaderDep) -> HTMLResponse:
    """The report for people: what was gained and lost, pictures and tables.

    Every artifact has it, too, as `report.html`.
    """
    _require_success(job_id, caller.users)
    page = render_report(caller.users.report(job_id) or {})
    return HTMLResponse(page, headers={"Content-Security-Policy": policy()})


def _published(job_id: str, users: Users) -> tuple[jobs.Artifact, ...]:
    """The artifacts of a job that has succeeded."""
    _require_success(job_id, users)
    return users.artifacts(job_id)


def _require_success(job_id: str, users: Users) -> None:
    state = users.get(job_id).state
    if state is not JobState.SUCCEEDED:
        raise JobConflict(f"The job is {state}; only a job that has succeeded has results.")


def _named(name: str, job_id: str, users: Users) -> jobs.Artifact:
    found = _published(job_id, users)
    for each in found:
        if each.name == name:
            return each
    names = ", ".join(each.name for each in found)
    raise ArtifactNotFound(f"The job has no artifact '{shortened(name)}'; it has: {names}.")


def _redirect(
    job_id: str, name: str, path: str, services: Services, users: Users, *, head: bool = False
) -> RedirectResponse:
    lifetime = services.settings.presigned_url_seconds
    key = _key(job_id, _named(name, job_id, users), path)
    url = services.storage.presign(key, lifetime, head=head)
    return RedirectResponse(url, 302, headers={"Cache-Control": "no-store"})


def _key(job_id: str, artifact: jobs.Artifact, path: str) -> str:
    """The key of a recorded file; a path is only compared, never made into a key."""
    if path == MANIFEST_NAME:
        return manifest_key(job_id, artifact.name)
    for entry in artifact.files:
        if entry.path == path:
            return artifact.prefix + entry.path
    raise FileNotFound(f"The artifact '{artifact.name}' has no file '{shortened(path)}'.")


def _shown(job_id: str, artifact: jobs.Artifact, services: Services) -> Artifact:
    storage, lifetime = services.storage, services.settings.presigned_url_seconds
    expires_at = datetime.now(UTC) + timedelta(seconds=lifetime)

    def file(entry: jobs.FileEntry, key: str) -> ArtifactFile:
        url = storage.presign(key, lifetime)
        return ArtifactFile(path=entry.path, size=entry.size, sha256=entry.sha256, url=url)

    files = [file(entry, artifact.prefix + entry.path) for entry in artifact.files]
    files.append(
        file(read_manifest(job_id, artifact, storage), manifest_key(job_id, artifact.name))
    )
    return Artifact(
        name=artifact.name,
        uri=f"s3://{storage.bucket}/{artifact.prefix}",
        bytes=sum(file.size for file in files),
        files=files,
        expires_at=expires_at,
    )


def read_manifest(job_id: str, artifact: jobs.Artifact, storage: ObjectStorage) -> jobs.FileEntry:
    """The manifest lists the other files but not itself, so it is read to be measured.

    Raises ObjectMissing or ArtifactCorrupt if the artifact is not what the job has published.
    """
    content = storage.get_bytes(manifest_key(job_id, artifact.name))
    check_manifest(content, artifact, job_id)
    return jobs.FileEntry(MANIFEST_NAME, len(content), hashlib.sha256(content).hexdigest())

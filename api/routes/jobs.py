"""Submit, list, change, cancel, retry and delete jobs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.access import ReaderDep, SubmitterDep
from api.cursors import decode_cursor, encode_cursor
from api.routes import JobId, guarded, makes, problems
from api.routes.job_filters import JobFilterDep
from api.schemas.jobs import Job, JobPage
from api.services import Services, ServicesDep
from service.domain import job as jobs
from service.domain.patch import JobPatch
from service.domain.spec.job import JobSpec
from service.inputs.checks import SubmissionChecks
from service.store.users import Users

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=guarded())

MAX_JOBS = 200

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$",
        description="Chosen by the client, such as a UUID; the same key never makes a second job.",
    ),
]
REPLAYED = "Idempotent-Replayed"

EXAMPLES = {
    "local": {
        "summary": "A local model, two sizes from one calibration",
        "value": {
            "name": "llama-3-code",
            "model": {"source": "local", "path": "/models/llama-3-8b"},
            "calibration": {
                "data": {"source": "local", "path": "/texts/code", "pattern": "**/*.py"},
                "sequences": 256,
                "sequence_length": 1024,
            },
            "targets": [{"keep": 0.8}, {"keep": 0.6}],
            "labels": {"team": "ml"},
        },
    },
    "bucket": {
        "summary": "Model and text in buckets: a size, and a quality on a second text",
        "value": {
            "model": {"source": "s3", "uri": "s3://models/llama-3-8b"},
            "calibration": {"data": {"source": "s3", "uri": "s3://texts/code.jsonl"}},
            "method": "impact",
            "targets": [
                {"keep": 0.7, "scope": "model"},
                {"max_perplexity_increase": 0.05, "dataset": "prose"},
            ],
            "evaluation": {
                "datasets": [
                    {"name": "prose", "data": {"source": "s3", "uri": "s3://texts/prose.jsonl"}}
                ]
            },
            "workers": 4,
        },
    },
}

CHANGES = {
    "priority": {"summary": "Run it earlier", "value": {"priority": 5}},
    "labels": {
        "summary": "Set one label, remove another",
        "value": {"labels": {"team": "ml", "trial": None}},
    },
}


@router.post(
    "",
    status_code=201,
    summary="Submit a job",
    responses=problems(400, 408, 413, 415)
    | makes("job_id", "get_job", "change", "cancel", "delete", "events", "logs", "artifacts")
    | {200: {"model": Job, "description": "The job that an earlier request with this key made."}},
)
async def submit(
    spec: Annotated[JobSpec, Body(openapi_examples=EXAMPLES)],
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: SubmitterDep,
    idempotency_key: IdempotencyKey = None,
) -> Job:
    """Check the inputs and queue the job; `Location` says where it is.

    The server looks at the model, the texts and the bucket before it accepts the job; a refused
    job leaves nothing behind. Ray need not run: the job waits for it.

    With an `Idempotency-Key` a request can be repeated when its answer was lost: the same key
    and body give the same job, with status 200 and the header `Idempotent-Replayed: true`.
    """
    job, new = await _submitted(spec, idempotency_key, services.checks, caller.users)
    shown = _shown(job, request, services)
    response.headers["Location"] = shown.links.self
    if not new:
        response.status_code = 200
        response.headers[REPLAYED] = "true"
    return shown


async def _submitted(
    spec: JobSpec, key: str | None, checks: SubmissionChecks, users: Users
) -> tuple[jobs.Job, bool]:
    """The job, and whether this request created it."""
    if key is None:
        await checks.run(spec, users)
        return await run_in_threadpool(users.create, spec), True
    # An accepted job stays accepted, even if its inputs have been removed since.
    earlier = await run_in_threadpool(users.find_once, spec, key)
    if earlier is not None:
        return earlier, False
    await checks.run(spec, users)
    return await run_in_threadpool(users.create_once, spec, key)


@router.get("", summary="List jobs")
def list_jobs(
    request: Request,
    services: ServicesDep,
    caller: ReaderDep,
    wanted: JobFilterDep,
    limit: Annotated[int, Query(ge=1, le=MAX_JOBS, description="Jobs per page.")] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
) -> JobPage:
    """Newest first. Filters may be combined, and changed from page to page."""
    before = decode_cursor(cursor, jobs.JOB_ID_PATTERN)
    # One job more than requested shows whether there is a next page.
    found = caller.users.list_jobs(wanted, limit=limit + 1, before=before)
    page = found[:limit]
    return JobPage(
        jobs=[_shown(job, request, services) for job in page],
        next_cursor=encode_cursor(page[-1].id) if len(found) > limit else None,
    )


@router.get("/{job_id}", summary="Get a job", responses=problems(404))
def get_job(job_id: JobId, request: Request, services: ServicesDep, caller: ReaderDep) -> Job:
    """Its state, the progress of its steps and, if it failed, the reason."""
    return _shown(caller.users.get(job_id), request, services)


@router.patch(
    "/{job_id}",
    summary="Change a job's priority or labels",
    responses=problems(400, 404, 408, 409, 413, 415),
)
def change(
    job_id: JobId,
    patch: Annotated[JobPatch, Body(openapi_examples=CHANGES)],
    request: Request,
    services: ServicesDep,
    caller: SubmitterDep,
) -> Job:
    """A merge patch (RFC 7396): fields and labels that it leaves out stay, null removes.

    The priority can be changed while the job is queued, labels until it is deleted. Repeating the
    request changes nothing.
    """
    return _shown(caller.users.change(job_id, patch), request, services)


@router.post(
    "/{job_id}/cancel", status_code=202, summary="Cancel a job", responses=problems(404, 409)
)
def cancel(job_id: JobId, request: Request, services: ServicesDep, caller: SubmitterDep) -> Job:
    """A queued job is cancelled at once; a running job passes through `cancelling`.

    Repeating the request changes nothing. A job that has succeeded or failed cannot be cancelled.
    """
    return _shown(caller.users.cancel(job_id), request, services)


@router.post(
    "/{job_id}/retry", status_code=202, summary="Retry a failed job", responses=problems(404, 409)
)
def retry(job_id: JobId, request: Request, services: ServicesDep, caller: SubmitterDep) -> Job:
    """Queue a failed job again, with as many attempts as a new one.

    It resumes from the checkpoints of its attempts if they are still in the bucket. Repeating the
    request changes nothing. A job that has not failed answers 409.
    """
    return _shown(caller.users.retry(job_id), request, services)


@router.delete(
    "/{job_id}", status_code=204, summary="Delete an ended job", responses=problems(404, 409)
)
def delete(job_id: JobId, caller: SubmitterDep) -> None:
    """Its artifacts, checkpoints, events and report go with it, and cannot be restored.

    From then on the job is unknown (404), also to a repeated request. The bucket follows soon
    after. A job that waits or runs answers 409.
    """
    caller.users.delete(job_id)


def _shown(job: jobs.Job, request: Request, services: Services) -> Job:
    root_path: str = request.scope.get("root_path", "")
    settings = services.settings
    dashboard = settings.ray_public_address or settings.ray_address
    return Job.of(job, root_path=root_path, dashboard_url=dashboard.rstrip("/"))

"""Submit, list, follow, cancel, retry and delete jobs."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from api.access import ReaderDep, SubmitterDep
from api.routes import JobId, problems
from api.schemas.jobs import EventPage, Job, JobPage
from api.services import Services, ServicesDep
from service.domain import job as jobs
from service.domain.spec import JobSpec
from service.domain.states import JobState
from service.errors import InvalidParameter
from service.store.users import Users

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=problems(422, 503))

MAX_JOBS = 200
MAX_EVENTS = 1000
MAX_EVENT_ID = 2**63 - 1
"""The largest id that the database can hold."""

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


@router.post(
    "",
    status_code=201,
    summary="Submit a job",
    responses=problems(400, 408, 413, 415)
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
    datasets = services.store.datasets(caller.tenant)
    check = partial(services.checks.run, spec, datasets)
    job, new = await _submitted(spec, idempotency_key, check, caller.users)
    shown = _shown(job, request, services)
    response.headers["Location"] = shown.links.self
    if not new:
        response.status_code = 200
        response.headers[REPLAYED] = "true"
    return shown


async def _submitted(
    spec: JobSpec, key: str | None, check: Callable[[], Awaitable[None]], users: Users
) -> tuple[jobs.Job, bool]:
    """The job, and whether this request created it."""
    if key is None:
        await check()
        return await run_in_threadpool(users.create, spec), True
    # An accepted job stays accepted, even if its inputs have been removed since.
    earlier = await run_in_threadpool(users.find_once, spec, key)
    if earlier is not None:
        return earlier, False
    await check()
    return await run_in_threadpool(users.create_once, spec, key)


@router.get("", summary="List jobs")
def list_jobs(
    request: Request,
    services: ServicesDep,
    caller: ReaderDep,
    limit: Annotated[int, Query(ge=1, le=MAX_JOBS, description="Jobs per page.")] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
    state: Annotated[
        tuple[JobState, ...],
        Query(max_length=len(JobState), description="Only jobs in this state; may be repeated."),
    ] = (),
) -> JobPage:
    """Newest first."""
    before = None if cursor is None else decode_cursor(cursor)
    # One job more than requested shows whether there is a next page.
    found = caller.users.list_jobs(limit=limit + 1, before=before, states=state)
    page = found[:limit]
    return JobPage(
        jobs=[_shown(job, request, services) for job in page],
        next_cursor=encode_cursor(page[-1].id) if len(found) > limit else None,
    )


@router.get("/{job_id}", summary="Get a job", responses=problems(404))
def get_job(job_id: JobId, request: Request, services: ServicesDep, caller: ReaderDep) -> Job:
    """Its state, the progress of its steps and, if it failed, the reason."""
    return _shown(caller.users.get(job_id), request, services)


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


@router.get("/{job_id}/events", summary="Read a job's events", responses=problems(404))
def events(
    job_id: JobId,
    caller: ReaderDep,
    after: Annotated[
        int, Query(ge=0, le=MAX_EVENT_ID, description="Only events with a greater id.")
    ] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_EVENTS)] = MAX_EVENTS,
) -> EventPage:
    """All events of the job and its attempts, oldest first."""
    return EventPage.of(caller.users.events(job_id, after=after, limit=limit), after=after)


def _shown(job: jobs.Job, request: Request, services: Services) -> Job:
    root_path: str = request.scope.get("root_path", "")
    settings = services.settings
    dashboard = settings.ray_public_address or settings.ray_address
    return Job.of(job, root_path=root_path, dashboard_url=dashboard.rstrip("/"))


def encode_cursor(job_id: str) -> str:
    """Opaque on purpose: its content may change."""
    return base64.urlsafe_b64encode(job_id.encode()).decode()


def decode_cursor(cursor: str, pattern: str = jobs.JOB_ID_PATTERN) -> str:
    """The id in the cursor, which is a job's or has another pattern.

    :raises InvalidParameter: it is not a cursor that `encode_cursor` made
    """
    try:
        job_id = base64.b64decode(cursor, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError):
        job_id = ""
    if not re.fullmatch(pattern, job_id):
        raise InvalidParameter(
            "cursor: not a cursor of this server; take `next_cursor` from the page before",
            param="cursor",
        )
    return job_id

"""What an attempt's processes have printed."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.access import ReaderDep
from api.routes import JobId, guarded
from api.schemas.logs import LogPage
from api.services import ServicesDep
from service.domain.states import TERMINAL
from service.logs.attempt_logs import DRIVER
from service.logs.attempt_logs import LogPage as Page

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], responses=guarded(404))

MAX_ATTEMPT = 2**31 - 1
MAX_OFFSET = 2**63 - 1
MIN_BYTES, USUAL_BYTES, MAX_BYTES = 1024, 2**16, 2**18


@router.get("/{job_id}/logs", summary="Read an attempt's logs")
def logs(
    job_id: JobId,
    services: ServicesDep,
    caller: ReaderDep,
    attempt: Annotated[
        int | None,
        Query(ge=1, le=MAX_ATTEMPT, description="Unset: the current attempt, or the last one."),
    ] = None,
    source: Annotated[
        str,
        Query(
            pattern=r"^(driver|worker-(0|[1-9][0-9]{0,4}))$",
            description="`driver`, which has the workers' output, too, or one worker: `worker-0`.",
        ),
    ] = DRIVER,
    after: Annotated[
        int, Query(ge=0, le=MAX_OFFSET, description="Only what follows this offset.")
    ] = 0,
    limit: Annotated[
        int, Query(ge=MIN_BYTES, le=MAX_BYTES, description="Bytes per page.")
    ] = USUAL_BYTES,
) -> LogPage:
    """The log of the attempt's driver or of one of its workers, in whole lines.

    While the attempt runs, its logs are read from Ray, so ask for the next page again until
    `complete`. Of an attempt that has ended, the last mebibyte of each log is kept with the job. A
    log that was lost with its machine has no text, and `missing` says why.
    """
    job = caller.users.get(job_id)
    if attempt is None and not job.attempt:
        ended = job.state in TERMINAL
        return LogPage.model_validate(Page(0, source, (), after, "", after, complete=ended))
    page = services.logs.page(job, attempt or job.attempt, source, after, limit)
    return LogPage.model_validate(page)

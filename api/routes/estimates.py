"""What a job would make and take, said without running it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body

from api.access import ReaderDep
from api.routes import guarded, problems
from api.routes.jobs import EXAMPLES
from api.schemas.estimates import Estimate
from api.services import ServicesDep
from service.domain.spec.job import JobSpec

router = APIRouter(prefix="/v1/estimates", tags=["estimates"], responses=guarded())


@router.post("", summary="Estimate a job", responses=problems(400, 408, 413, 415))
async def estimate(
    spec: Annotated[JobSpec, Body(openapi_examples=EXAMPLES)],
    services: ServicesDep,
    caller: ReaderDep,
) -> Estimate:
    """Sizes, workers, memory and time of a job, and whether it would be refused.

    Takes the body of `POST /v1/jobs` and leaves nothing behind. The server reads the model's
    configuration and the headers of its weights, no weight. A body that is no job is refused as
    there (422); what else is wrong with it is in `problems`.
    """
    return Estimate.of(await services.estimates.of(spec, caller.users))

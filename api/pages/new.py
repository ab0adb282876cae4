"""The page of a new job: a form whose estimate follows while one types."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from api.access import Caller, ReaderDep, SubmitterDep
from api.errors import status_of
from api.pages import spec_fields, spec_form
from api.pages.new_form import (
    FIRST,
    NewForm,
    Parsed,
    Sending,
    with_row,
    without_row,
)
from api.pages.rendering import page
from api.pages.route import PageRoute
from api.routes.datasets import MAX_DATASETS, list_datasets
from api.routes.estimates import estimate
from api.routes.jobs import get_job, submit
from api.schemas.problems import ProblemItem
from api.services import Services, ServicesDep
from service.domain.job import JOB_ID_PATTERN
from service.errors import EigenpressError

MAX_FIELDS = 2000
TRIED = "tried"
"""A field of a form that was submitted and refused."""
TOKEN_PATTERN = r"[0-9a-f]{32}"  # noqa: S105

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/new")
def new(
    request: Request,
    services: ServicesDep,
    caller: SubmitterDep,
    template: Annotated[str | None, Query(alias="from", pattern=JOB_ID_PATTERN)] = None,
) -> Response:
    """The form, empty or as another job was."""
    if template is None:
        return _page(request, services, caller, NewForm(FIRST))
    body = get_job(template, request, services, caller).request()
    return _page(request, services, caller, NewForm(spec_form.write(body)))


@router.post("/new", name="submit")
async def submit_form(request: Request, services: ServicesDep, caller: SubmitterDep) -> Response:
    """Submit the job and go to its page; or show the form again, with what is wrong with it."""
    form = NewForm(await _form(request))
    read = spec_form.read(form.form)
    parsed = Parsed.of(read)
    if parsed.spec is None:
        form.add(parsed.problems, read)
        return await run_in_threadpool(_page, request, services, caller, form, 422)
    key = form.token if re.fullmatch(TOKEN_PATTERN, form.token) else None
    try:
        job = await submit(parsed.spec, request, Response(), services, caller, key)
    except EigenpressError as error:
        form.add([_item(error)], read)
        status = status_of(type(error))
        return await run_in_threadpool(_page, request, services, caller, form, status)
    request.state.subject = job.links.self
    root: str = request.scope.get("root_path", "")
    return RedirectResponse(f"{root}/jobs/{job.id}", 303)


@router.post("/new/rows", name="redraw")
async def rows(request: Request, services: ServicesDep, caller: SubmitterDep) -> Response:
    """The form with another target or text, or with one less."""
    form = await _form(request)
    added, removed = form.pop("add", ""), form.pop("remove", "")
    focus = None
    if added in spec_fields.ROWS:
        form, focus = with_row(form, added)
    if removed:
        form = without_row(form, removed)
        focus = removed.rpartition(".")[0]
    redrawn = NewForm(form, focus=focus)
    return await run_in_threadpool(_page, request, services, caller, redrawn)


@router.post("/new/estimate", name="estimate")
async def estimate_form(request: Request, services: ServicesDep, caller: ReaderDep) -> Response:
    """What the job would make and take; what is wrong with the form; and the form as a request."""
    form = NewForm(await _form(request))
    read = spec_form.read(form.form)
    parsed = Parsed.of(read)
    found = None
    problems = parsed.problems
    if not form.value(TRIED):
        problems = [each for each in problems if each not in parsed.missing]
    if parsed.spec is not None:
        found = await estimate(parsed.spec, services, caller)
        problems = found.problems
    form.add(problems, read)
    return page(
        request,
        "estimate.html",
        form=form,
        estimate=found,
        missing=[each.param for each in parsed.missing],
        sending=_sending(request, read.body),
    )


async def _form(request: Request) -> dict[str, str]:
    """The fields that are texts, and of equal ones the last."""
    sent = await request.form(max_fields=MAX_FIELDS, max_files=0)
    return {name: value for name, value in sent.items() if isinstance(value, str)}


def _sending(request: Request, body: spec_form.Json) -> Sending:
    return Sending(body, str(request.base_url).rstrip("/"))


def _page(
    request: Request, services: Services, caller: Caller, form: NewForm, status: int = 200
) -> Response:
    datasets = list_datasets(services, caller, MAX_DATASETS, None).datasets
    return page(
        request,
        "new.html",
        status,
        form=form,
        datasets=datasets,
        sending=_sending(request, spec_form.read(form.form).body),
    )


def _item(error: EigenpressError) -> ProblemItem:
    return ProblemItem(code=error.code, detail=error.detail, param=error.param)

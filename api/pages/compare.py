"""The page that compares the artifacts of several jobs, by their sizes, qualities and speeds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from api.access import ReaderDep
from api.pages.rendering import page
from api.pages.route import PageRoute
from api.routes.jobs import get_job, list_jobs
from api.schemas.jobs import Job
from api.services import ServicesDep
from service.domain.job import JOB_ID_PATTERN
from service.domain.spec.evaluation import HELD_OUT
from service.domain.states import JobState
from service.store.listing import JobFilter

MAX_COMPARED = 8
MAX_ARTIFACTS = 300
OFFERED_JOBS = 50
DENSE = "dense"
"""In the place of an artifact's name: the model before the compression."""

router = APIRouter(include_in_schema=False, route_class=PageRoute)

Size = Literal["bytes", "parameters"]
Quality = Literal["perplexity", "ratio"]
TITLES: Mapping[str, str] = {
    "bytes": "Bytes",
    "parameters": "Parameters",
    "perplexity": "Perplexity",
    "ratio": "Perplexity, of the dense model's",
    "speed": "Tokens per second",
}


@dataclass(frozen=True)
class Artifact:
    """A model that a job has measured, as its report says; None is what the report lacks."""

    job: Job
    name: str
    bytes: int | None
    parameters: int | None
    measured: Mapping[str, Mapping[str, float | None]]
    """By the text, its `perplexity` and its `ratio` to that of the dense model."""
    speed: float | None

    @property
    def id(self) -> str:
        return f"{self.job.id}/{self.name}"

    def quality(self, text: str, measure: str) -> float | None:
        value = self.measured.get(text, {}).get(measure)
        return 1.0 if measure == "ratio" and self.name == DENSE else value


def artifacts_of(job: Job, report: Mapping[str, Any]) -> Iterator[Artifact]:
    """The dense model and the job's artifacts. A report of another version may lack fields."""
    model, dense = _part(report, "model"), _part(report, "evaluation", "dense")
    sizes = model.get("dense_bytes"), model.get("parameters")
    yield Artifact(job, DENSE, *sizes, *_measurements(dense))
    for target in report.get("targets") or ():
        size = _part(target, "size")
        sizes = size.get("bytes"), size.get("parameters")
        yield Artifact(job, str(target.get("name")), *sizes, *_measurements(target))


def _measurements(model: Mapping[str, Any]) -> tuple[Mapping[str, Any], float | None]:
    return _part(model, "perplexity"), model.get("decode_tokens_per_second")


def _part(part: Any, *path: str) -> Mapping[str, Any]:
    """The object at the path; an empty one if there is none."""
    for name in path:
        part = part.get(name) if isinstance(part, Mapping) else None
    return part if isinstance(part, Mapping) else {}


@router.get("/compare")
def compare(
    request: Request,
    services: ServicesDep,
    caller: ReaderDep,
    job: Annotated[
        tuple[Annotated[str, Query(pattern=JOB_ID_PATTERN)], ...], Query(max_length=MAX_COMPARED)
    ] = (),
    artifact: Annotated[tuple[str, ...], Query(max_length=MAX_ARTIFACTS)] = (),
    size: Size = "bytes",
    quality: Quality = "perplexity",
    text: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """The jobs' artifacts on one curve, and in a table; without jobs, the choice of them."""
    compared = [get_job(each, request, services, caller) for each in dict.fromkeys(job)]
    found = [
        each
        for shown in compared
        if (report := caller.users.report(shown.id))
        for each in artifacts_of(shown, report)
    ]
    texts = list({name: None for each in found for name in each.measured})
    chosen_text = text if text in texts else next(iter(texts), HELD_OUT)
    succeeded = JobFilter(states=(JobState.SUCCEEDED,))
    offered = list_jobs(request, services, caller, succeeded, OFFERED_JOBS, None).jobs
    drawn = [each for each in found if not artifact or each.id in artifact]
    return page(
        request,
        "compare.html",
        jobs=compared,
        without=[each for each in compared if each.state is not JobState.SUCCEEDED],
        offered=[each for each in offered if each.id not in job],
        artifacts=found,
        drawn={each.id for each in drawn},
        texts=texts,
        text=chosen_text,
        size=size,
        quality=quality,
        titles=TITLES,
        charts=charts(drawn, compared, size, quality, chosen_text),
    )


def charts(
    artifacts: Sequence[Artifact], jobs: Collection[Job], size: Size, quality: Quality, text: str
) -> list[dict[str, Any]]:
    """What the page draws: for each job a series of points, the smallest first."""
    drawn = []
    for measure in (quality, "speed"):
        series = []
        for job in jobs:
            points = [
                (getattr(each, size), each.speed if measure == "speed" else value, each.name)
                for each in artifacts
                if each.job is job
                for value in [each.quality(text, quality)]
            ]
            known = sorted(each for each in points if None not in each)
            series.append({"name": job.name or job.id, "points": known})
        if any(each["points"] for each in series):
            title = TITLES[measure] if measure == "speed" else f"{TITLES[measure]}, {text}"
            drawn.append(
                {"x": TITLES[size], "y": title, "bytes": size == "bytes", "series": series}
            )
    return drawn

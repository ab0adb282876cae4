"""Upload, list and delete datasets."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from starlette.exceptions import HTTPException

from api.access import ReaderDep, SubmitterDep
from api.cursors import decode_cursor, encode_cursor
from api.limits import declared_bytes, pieces
from api.routes import guarded, makes, problems
from api.schemas.datasets import DATASET_ID_EXAMPLE, Dataset, DatasetPage
from api.services import ServicesDep
from service.datasets.uploads import Wanted, too_large
from service.domain.datasets import Format
from service.domain.spec.fields import NAME_PATTERN
from service.domain.spec.sources import DATASET_ID_PATTERN, TEXT_FIELD

router = APIRouter(prefix="/v1/datasets", tags=["datasets"], responses=guarded())

STREAMED = frozenset({("POST", "/v1/datasets")})
"""The routes that read bodies of any size, piece by piece."""
MAX_DATASETS = 200

DatasetId = Annotated[
    str,
    Path(
        description="The dataset's id.",
        openapi_examples={"a dataset": {"value": DATASET_ID_EXAMPLE}},
    ),
]
FILE = {
    "requestBody": {
        "required": True,
        "description": "The file as it is, or compressed with gzip (not Parquet).",
        "content": {
            "application/octet-stream": {
                "schema": {"type": "string", "format": "binary"},
                "examples": {"two rows": {"value": '{"text": "One."}\n{"text": "Two."}\n'}},
            }
        },
    }
}


@router.post(
    "",
    status_code=201,
    summary="Upload a dataset",
    responses=problems(408, 409, 413, 415) | makes("dataset_id", "get_dataset", "delete_dataset"),
    openapi_extra=FILE,
)
async def upload_dataset(
    request: Request,
    response: Response,
    services: ServicesDep,
    caller: SubmitterDep,
    kind: Annotated[
        Format, Query(alias="format", description="JSONL and Parquet have a document in each row.")
    ],
    name: Annotated[str | None, Query(pattern=NAME_PATTERN, description="For people.")] = None,
    text_field: Annotated[
        str,
        Query(
            min_length=1,
            max_length=200,
            description="The field of JSONL, or the column of Parquet, that holds the text of a "
            "row, or the messages of a chat.",
        ),
    ] = TEXT_FIELD,
) -> Dataset:
    """The file is the body: `curl --data-binary @FILE`. It is stored and checked as it arrives.

    The whole file is checked: that it is UTF-8, that each line of JSONL is an object with the
    field, and that there is text. A file that is refused, or whose upload breaks, leaves nothing
    behind. Of Parquet the footer is checked.
    """
    _check_headers(request)
    if declared_bytes(request.scope) > services.settings.max_dataset_bytes:
        raise too_large(services.settings.max_dataset_bytes)
    body = pieces(request, services.settings.upload_stall_seconds)
    made = await services.receiver.receive(Wanted(name, kind, text_field), caller.tenant, body)
    root_path: str = request.scope.get("root_path", "")
    response.headers["Location"] = f"{root_path}/v1/datasets/{made.id}"
    return Dataset.model_validate(made)


@router.get("", summary="List datasets")
def list_datasets(
    services: ServicesDep,
    caller: ReaderDep,
    limit: Annotated[int, Query(ge=1, le=MAX_DATASETS, description="Datasets per page.")] = 50,
    cursor: Annotated[str | None, Query(description="`next_cursor` of the page before.")] = None,
) -> DatasetPage:
    """Newest first."""
    before = decode_cursor(cursor, DATASET_ID_PATTERN)
    # One more than requested shows whether there is a next page.
    found = services.store.datasets(caller.tenant).page(limit=limit + 1, before=before)
    page = found[:limit]
    return DatasetPage(
        datasets=[Dataset.model_validate(each) for each in page],
        next_cursor=encode_cursor(page[-1].id) if len(found) > limit else None,
    )


@router.get("/{dataset_id}", summary="Get a dataset", responses=problems(404))
def get_dataset(dataset_id: DatasetId, services: ServicesDep, caller: ReaderDep) -> Dataset:
    """What is known of it. Its text stays in the bucket."""
    return Dataset.model_validate(services.store.datasets(caller.tenant).get(dataset_id))


@router.delete(
    "/{dataset_id}",
    status_code=204,
    summary="Delete a dataset",
    responses=problems(404, 409),
)
def delete_dataset(dataset_id: DatasetId, services: ServicesDep, caller: SubmitterDep) -> None:
    """From then on it is unknown (404), and the bucket follows soon after.

    While a job that names it waits or runs, the answer is 409. A failed job whose dataset has been
    deleted can no longer be retried.
    """
    services.store.datasets(caller.tenant).delete(dataset_id)


def _check_headers(request: Request) -> None:
    content_type = request.headers.get("content-type", "").lower()
    if content_type.startswith("multipart/"):
        raise HTTPException(
            415, "The body must be the file itself, not a form: curl --data-binary @FILE"
        )
    if (encoding := request.headers.get("content-encoding", "identity").lower()) not in (
        "identity",
        "gzip",
        "x-gzip",
    ):
        shown = encoding[:40]
        raise HTTPException(415, f"Content-Encoding '{shown}' is not read; send the file as gzip")

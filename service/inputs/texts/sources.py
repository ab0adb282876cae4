"""Where texts and problems come from: local paths, S3, the hub and uploaded datasets.

Each is checked when a job is submitted, by the beginnings of the first files, and fetched on every
node that needs it: a local text is read in place, another is downloaded once per machine and
contents. A dataset was checked as it was uploaded. A submission does not look at texts on the hub;
their problems show when the job runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

from service.domain.credentials import NO_CREDENTIALS, Credentials
from service.domain.spec.evaluation import MultipleChoice, PassAt1
from service.domain.spec.sources import DatasetData, DataSource, HubData, LocalData, S3Data
from service.errors import (
    DataInvalid,
    DataNotFound,
    InvalidParameter,
)
from service.inputs.cache import cached
from service.inputs.glob import selected_files, selects
from service.inputs.hub import HubRepository
from service.inputs.local import allowed_path
from service.inputs.s3 import S3Listing, list_source, missing_as
from service.inputs.texts.datasets import FetchedText, beginning_of_dataset, fetch_dataset
from service.inputs.texts.documents import CHECKED_FILES, check_documents, check_records
from service.inputs.texts.text_files import copy_checked
from service.settings import Settings

MAX_DATA_FILES = 100_000
MAX_DATA_BYTES = 64 * 2**30


def check_data(
    source: DataSource, settings: Settings, param: str, credentials: Credentials = NO_CREDENTIALS
) -> None:
    """Raise unless the pattern selects files, and the beginnings of the first ones are text.

    `credentials` are the tenant's. Raises `PathNotAllowed`, `DataNotFound`, `DataInvalid`, and for
    S3 the storage's errors, about fields of `param`. Does not contact the hub.
    """
    with _beginnings(source, settings, param, credentials) as text:
        if text:
            check_documents(text.root, text.pattern, text.text_field, param)


def check_problems(
    task: MultipleChoice | PassAt1,
    settings: Settings,
    param: str,
    credentials: Credentials = NO_CREDENTIALS,
) -> None:
    """Raise unless the pattern selects files of rows, and the first ones have the task's fields.

    `param` is the field of the request that holds the task. Raises the errors of `check_data`.
    """
    data = f"{param}.data"
    with _beginnings(task.data, settings, data, credentials) as text:
        if text:
            check_records(text.root, text.pattern, problem_fields(task, param), data)


def problem_fields(task: MultipleChoice | PassAt1, param: str) -> dict[str, str]:
    """The fields to read of every row, each with the field of the request that names it."""
    if isinstance(task, PassAt1):
        return dict.fromkeys(("task_id", "prompt", "entry_point", "test"), f"{param}.data")
    return {
        task.question_field: f"{param}.question_field",
        task.choices_field: f"{param}.choices_field",
        task.answer_field: f"{param}.answer_field",
    }


def fetch_data(
    source: DataSource, settings: Settings, param: str, credentials: Credentials = NO_CREDENTIALS
) -> FetchedText:
    """The text on this machine.

    Retries for `settings.retry_timeout_seconds` while S3 is unavailable. Raises what `check_data`
    raises, `DataNotFound` for a dataset that is gone, and `HubUnavailable`.
    """
    match source:
        case LocalData():
            root = _local_data(source, settings, param)
        case S3Data():
            root = _fetch_s3_data(source, settings, param, credentials)
        case HubData():
            root = _fetch_hub_data(source, settings, param, credentials)
        case DatasetData():
            with missing_as(DataNotFound, f"{param}.id"):
                return fetch_dataset(source.id, settings)
    return FetchedText(root, source.pattern, source.text_field)


def _local_data(source: LocalData, settings: Settings, param: str) -> Path:
    path = allowed_path(source.path, settings, DataNotFound, f"{param}.path")
    try:
        found = path.is_file() or any(selected_files(path, source.pattern))
    except OSError as error:
        raise DataInvalid(f"{path} cannot be read: {error}", param=f"{param}.path") from error
    if not found:
        raise _no_match(str(path), source.pattern, param)
    return path


def _list_s3_data(
    source: S3Data,
    settings: Settings,
    param: str,
    credentials: Credentials,
    patience_seconds: float = 0,
) -> S3Listing:
    def wanted(path: str) -> bool:
        return selects(source.pattern, path)

    with missing_as(DataNotFound, f"{param}.uri"):
        listing = list_source(
            source.uri, settings, wanted, f"{param}.uri", patience_seconds, credentials
        )
    if not listing.objects:
        raise _no_match(source.uri, source.pattern, param)
    _check_bounds(listing.sizes, param)
    return listing


@contextmanager
def _beginnings(
    source: DataSource, settings: Settings, param: str, credentials: Credentials
) -> Iterator[FetchedText | None]:
    """The text, of whose first files the beginnings can be read; None on the hub."""
    match source:
        case LocalData():
            root = _local_data(source, settings, param)
            yield FetchedText(root, source.pattern, source.text_field)
        case S3Data():
            listing = _list_s3_data(source, settings, param, credentials)
            with TemporaryDirectory() as folder, missing_as(DataNotFound, f"{param}.uri"):
                root = _copy_beginnings(listing, Path(folder).resolve(), param)
                yield FetchedText(root, source.pattern, source.text_field)
        case DatasetData():
            with TemporaryDirectory() as folder, missing_as(DataNotFound, f"{param}.id"):
                yield beginning_of_dataset(source.id, settings, Path(folder).resolve())
        case HubData():
            yield None


def _copy_beginnings(listing: S3Listing, folder: Path, param: str) -> Path:
    """Copy what is checked of the first objects; the files have the sizes of the objects."""
    for path in islice(listing.objects, CHECKED_FILES + 1):  # shows whether there are more
        target = folder / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            copy = target.open("wb")
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise InvalidParameter(
                f"The object '{path}' cannot become a file beside the others: {error.strerror}.",
                param=f"{param}.uri",
            ) from error
        with copy:
            copy_checked(path, listing.sizes[path], partial(listing.read_range, path), copy)
    return folder / next(iter(listing.objects)) if listing.is_one_object else folder


def _fetch_s3_data(
    source: S3Data, settings: Settings, param: str, credentials: Credentials
) -> Path:
    listing = _list_s3_data(source, settings, param, credentials, settings.retry_timeout_seconds)

    def fill(folder: Path) -> None:
        with missing_as(DataNotFound, f"{param}.uri"):
            listing.fetch(listing.objects, folder, DataInvalid, f"{param}.uri")

    folder = cached(settings, "data", listing.identity, fill)
    return folder / next(iter(listing.objects)) if listing.is_one_object else folder


def _fetch_hub_data(
    source: HubData, settings: Settings, param: str, credentials: Credentials
) -> Path:
    repository = HubRepository(
        settings.hub_endpoint,
        "dataset",
        source.id,
        source.revision,
        DataNotFound,
        f"{param}.id",
        credential=credentials.for_hub(settings.hub_endpoint),
    )

    def fill(folder: Path) -> None:
        files = [file for path, file in repository.files().items() if selects(source.pattern, path)]
        if not files:
            raise _no_match(f"the dataset '{source.id}'", source.pattern, param)
        _check_bounds({file.path: file.size for file in files}, param)
        repository.download(files, folder)

    identity = f"{repository.identity}\n{source.pattern}"
    return cached(settings, "data", identity, fill)


def _no_match(where: str, pattern: str, param: str) -> DataNotFound:
    return DataNotFound(f"No file of {where} matches '{pattern}'.", param=f"{param}.pattern")


def _check_bounds(sizes: dict[str, int], param: str) -> None:
    if len(sizes) > MAX_DATA_FILES:
        raise DataInvalid(
            f"The pattern selects more than {MAX_DATA_FILES} files.", param=f"{param}.pattern"
        )
    if sum(sizes.values()) > MAX_DATA_BYTES:
        raise DataInvalid(
            f"The pattern selects more than {MAX_DATA_BYTES} bytes.", param=f"{param}.pattern"
        )

"""Where models come from: local paths, S3 and the hub.

Each is checked when a job is submitted, and fetched on every node that needs it: a local model is
read in place, another is downloaded once per machine and contents. Of models elsewhere a submission
reads the headers, by parts. It does not wait for a hub that does not answer; those problems show
when the job runs.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO

from service.domain.credentials import NO_CREDENTIALS, Credentials
from service.domain.spec.sources import HubModel, LocalPath, ModelSource, S3Prefix
from service.errors import (
    HubUnavailable,
    ModelInvalid,
    ModelNotFound,
)
from service.inputs.cache import cached
from service.inputs.hub import ANSWER_SECONDS, HubRepository
from service.inputs.local import allowed_path, refuse_outside
from service.inputs.models.files import (
    GGUF_SUFFIX,
    TEMPLATES_FOLDER,
    ModelHeaders,
    check_files,
    check_folder,
    check_listing,
    is_wanted,
    may_belong,
    read_tokenizer,
)
from service.inputs.models.gguf_header import GGUFHeader, check_gguf
from service.inputs.opening import HeldFiles, Open, open_file, scan_folder
from service.inputs.ranged import open_ranged
from service.inputs.s3 import S3Listing, list_source, missing_as
from service.settings import Settings

CHECK_SECONDS = 5.0
"""How long a submission waits for each answer of the hub."""
MAX_MODEL_FILES = 500
"""The limit of a local model, whose files all stay open."""


Headers = ModelHeaders | GGUFHeader


def check_model(
    source: ModelSource, settings: Settings, credentials: Credentials = NO_CREDENTIALS
) -> Headers | None:
    """What a model's files say about it, read as far as their headers.

    If the hub does not answer within seconds, the result is None, and its problems show when the
    job runs. `credentials` are the tenant's. Raises `PathNotAllowed`, `ModelNotFound`,
    `ModelConfigMissing`, `ModelInvalid`, `NotACausalLM`, `UnsafeWeights`, and for S3 the storage's
    errors.
    """
    match source:
        case LocalPath():
            _, headers = _local_model(source, settings, lambda _, resolved: open_file(resolved))
            return headers
        case S3Prefix():
            return _check_s3_model(_list_s3_model(source, settings, credentials))
        case HubModel():
            with suppress(HubUnavailable):
                return _check_hub_model(source, settings, credentials)
            return None


def fetch_model(
    source: ModelSource,
    settings: Settings,
    held: HeldFiles,
    credentials: Credentials = NO_CREDENTIALS,
) -> Path:
    """The model's folder, or its .gguf file, on this machine, checked as by `check_model`.

    A local model is the folder or file in `held` that stands for it, and has no other files than a
    fetched one has.
    Retries for `settings.retry_timeout_seconds` while S3 is unavailable. Raises what `check_model`
    raises, and `HubUnavailable`.
    """
    match source:
        case LocalPath():
            path, _ = _local_model(source, settings, held.open)
            return held.view(path)
        case S3Prefix():
            return _fetch_s3_model(source, settings, credentials)
        case HubModel():
            return _fetch_hub_model(source, settings, credentials)


def _local_model(source: LocalPath, settings: Settings, open_: Open) -> tuple[Path, Headers]:
    """The resolved path of the model, all of whose files `open_` has opened, and its headers."""
    param = "model.path"
    path = allowed_path(source.path, settings, ModelNotFound, param)
    try:
        if path.is_dir():
            return path, _check_local_folder(path, settings, open_, param)
        if path.suffix == GGUF_SUFFIX and path.is_file():
            with open_(path, path) as file:
                return path, check_gguf(file, path.name, param)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
        raise ModelInvalid(f"{path} cannot be read: {error}", param=param) from error
    raise ModelInvalid(f"{path} is neither a folder nor a .gguf file.", param=param)


def _check_local_folder(folder: Path, settings: Settings, open_: Open, param: str) -> ModelHeaders:
    files = _local_files(folder, settings, param)
    sizes = {name: resolved.lstat().st_size for name, resolved in files.items()}
    opened: set[str] = set()

    def open_one(name: str) -> IO[bytes]:
        opened.add(name)
        if len(opened) > MAX_MODEL_FILES:
            raise ModelInvalid(
                f"{folder} is a model of more than {MAX_MODEL_FILES} files. Save it with fewer.",
                param=param,
            )
        return open_(folder / name, files[name])

    headers = check_files(sizes, open_one, param)
    headers = replace(headers, tokenizer=read_tokenizer(sizes, open_one))
    for name in {*headers.weight_files, *filter(is_wanted, files)} - opened:
        open_one(name).close()
    return headers


def _local_files(folder: Path, settings: Settings, param: str) -> dict[str, Path]:
    """The regular files that may belong to a model, resolved, by their paths in its folder.

    Raises `PathNotAllowed` if anything that may belong to it is not allowed, and OSError.
    """
    found: dict[str, Path] = {}

    def look(inner: Path, prefix: str) -> None:
        with scan_folder(inner) as entries:
            names = [f"{prefix}{entry.name}" for entry in entries]
        for name in filter(may_belong, names):
            resolved = (folder / name).resolve()
            refuse_outside(str(folder / name), resolved, settings, param)
            if resolved.is_file():
                found[name] = resolved
            elif name == TEMPLATES_FOLDER and resolved.is_dir():
                look(resolved, f"{name}/")

    look(folder, "")
    return found


def _list_s3_model(
    source: S3Prefix, settings: Settings, credentials: Credentials, patience_seconds: float = 0
) -> S3Listing:
    """The objects below the prefix where transformers looks; or the one .gguf object."""
    param = "model.uri"
    with missing_as(ModelNotFound, param):
        listing = list_source(
            source.uri, settings, may_belong, param, patience_seconds, credentials
        )
    if not listing.objects:
        raise ModelNotFound(f"There is nothing at {source.uri}.", param=param)
    if listing.is_one_object and not source.uri.endswith(GGUF_SUFFIX):
        raise ModelInvalid(f"{source.uri} is neither a prefix nor a .gguf object.", param=param)
    return listing


def _check_s3_model(listing: S3Listing) -> Headers:
    """What the objects say as far as their headers."""
    param = "model.uri"

    def open_(path: str) -> IO[bytes]:
        return open_ranged(listing.sizes[path], partial(listing.read_range, path))

    with missing_as(ModelNotFound, param):
        if not listing.is_one_object:
            headers = check_files(listing.sizes, open_, param)
            return replace(headers, tokenizer=read_tokenizer(listing.sizes, open_))
        (path,) = listing.objects
        with open_(path) as file:
            return check_gguf(file, path, param)


def _s3_model_paths(listing: S3Listing) -> list[str]:
    """The paths to fetch; checks names, sizes and JSON."""
    if listing.is_one_object:
        return list(listing.objects)
    with missing_as(ModelNotFound, "model.uri"):
        weights = check_listing(listing.sizes, listing.read, "model.uri")
    return [*weights, *filter(is_wanted, listing.objects)]


def _fetch_s3_model(source: S3Prefix, settings: Settings, credentials: Credentials) -> Path:
    param, patience = "model.uri", settings.retry_timeout_seconds
    listing = _list_s3_model(source, settings, credentials, patience)

    def fill(folder: Path) -> None:
        paths = _s3_model_paths(listing)
        with missing_as(ModelNotFound, param):
            listing.fetch(paths, folder, ModelInvalid, param)
        if listing.is_one_object:
            (name,) = listing.objects
            with (folder / name).open("rb") as file:
                check_gguf(file, name, param)
        else:
            check_folder(folder, param)

    folder = cached(settings, "models", listing.identity, fill)
    return folder / next(iter(listing.objects)) if listing.is_one_object else folder


def _hub_model(
    source: HubModel,
    settings: Settings,
    credentials: Credentials,
    answer_seconds: float = ANSWER_SECONDS,
) -> HubRepository:
    return HubRepository(
        settings.hub_endpoint,
        "model",
        source.id,
        source.revision,
        ModelNotFound,
        "model.id",
        answer_seconds,
        credentials.for_hub(settings.hub_endpoint),
    )


def _check_hub_model(
    source: HubModel, settings: Settings, credentials: Credentials
) -> ModelHeaders:
    """What the repository's files say as far as their headers. Raises HubUnavailable."""
    repository = _hub_model(source, settings, credentials, CHECK_SECONDS)
    files = {path: file for path, file in repository.files().items() if may_belong(path)}
    sizes = {path: file.size for path, file in files.items()}

    def open_(path: str) -> IO[bytes]:
        return open_ranged(sizes[path], partial(repository.read_range, path))

    return check_files(sizes, open_, repository.param)


def _fetch_hub_model(source: HubModel, settings: Settings, credentials: Credentials) -> Path:
    repository, param = _hub_model(source, settings, credentials), "model.id"

    def fill(folder: Path) -> None:
        files = {path: file for path, file in repository.files().items() if may_belong(path)}
        repository.download((files[name] for name in filter(is_wanted, files)), folder)
        sizes = {path: file.size for path, file in files.items()}
        weights = check_listing(sizes, lambda name: (folder / name).read_bytes(), param)
        repository.download((files[name] for name in weights), folder)
        check_folder(folder, param)

    return cached(settings, "models", repository.identity, fill)

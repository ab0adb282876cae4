"""A job reads neither other jobs in the service's own bucket, nor places that are not allowed."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import InvalidParameter, PathNotAllowed
from service.inputs.s3 import list_source
from service.settings import Settings
from service.storage.s3 import ObjectStorage

ALLOWED = ("s3://models/public", "s3://texts/")


class Reached(Exception):
    """The listing would have been asked for."""


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def reach(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr(ObjectStorage, "from_settings", reach)


def read(uri: str, **settings: Any) -> None:
    list_source(uri, Settings(s3_bucket="ours", **settings), lambda _: True, "model.uri")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://ours",
        "s3://ours/",
        "s3://ours/jobs",
        "s3://ours/jobs/",
        "s3://ours/jobs/job-1",
        "s3://ours/jobs/job-1/artifacts",
        "s3://ours/jobs/job-1/artifacts/keep-0.8",
        "s3://ours/jobs/job-1/artifacts/keep-0.8/",
        "s3://ours/jobs/job-1/checkpoints/0123/artifacts/keep-0.8/x",
        "s3://ours/jobs/job-1/checkpoints/",
        "s3://ours/datasets",
        "s3://ours/datasets/",
        "s3://ours/datasets/ds-1",
        "s3://ours/datasets/ds-1/data.jsonl",
    ],
)
def test_what_is_everyones_is_not_read(uri: str) -> None:
    with pytest.raises(PathNotAllowed, match="everyone's jobs") as refused:
        read(uri)
    assert refused.value.param == "model.uri"
    with pytest.raises(Reached):
        read(uri.replace("s3://ours", "s3://others"))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://ours/models/llama",
        "s3://ours/jobs-of-mine/",
        "s3://ours/datasets-of-mine/",
        "s3://ours/jobs/job-1/artifacts/keep-0.8/1-9f3ac0de/",
    ],
)
def test_what_lies_beside_is_read_and_so_is_an_artifact(uri: str) -> None:
    with pytest.raises(Reached):
        read(uri)


@pytest.mark.parametrize(
    "key",
    [
        "/jobs/job-1",
        "models//jobs",
        "models/../jobs/job-1/checkpoints",
        "./jobs",
        "jobs/job-1/artifacts/keep-0.8/../../checkpoints/",
        "a//",
        "\0",
    ],
)
def test_keys_that_a_server_might_resolve(key: str) -> None:
    with pytest.raises(InvalidParameter, match=r"'\.' or '\.\.'"):
        read(f"s3://ours/{key}")


@pytest.mark.parametrize("uri", ["s3://models/public", "s3://models/public/llama", "s3://texts"])
def test_allowed_places_are_read(uri: str) -> None:
    with pytest.raises(Reached):
        read(uri, allowed_s3_prefixes=ALLOWED)


@pytest.mark.parametrize(
    "uri", ["s3://models", "s3://models/publications", "s3://models/private", "s3://texts-old/"]
)
def test_other_places_are_refused(uri: str) -> None:
    with pytest.raises(PathNotAllowed, match="may read: s3://models/public/, s3://texts/") as error:
        read(uri, allowed_s3_prefixes=ALLOWED)
    assert error.value.param == "model.uri"

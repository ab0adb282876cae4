"""No job makes the service ask another host than the hub that its administrator has chosen."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from huggingface_hub import hf_hub_url
from huggingface_hub.errors import HFValidationError
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.domain.spec.sources import REPOSITORY_PATTERN, HubModel
from service.inputs.glob import is_plain

ENDPOINT = "https://hub.example.com"
COMMIT = "0" * 40

IDS = [
    "//169.254.169.254/latest",
    "http://127.0.0.1/model",
    "https://[::1]/model",
    "@127.0.0.1/model",
    "org@127.0.0.1/model",
    "org:8080/model",
    "../org",
    "org/..",
    "./model",
    "org/../../api",
    "/org/model",
    "org//model",
    "org/model/",
    "org/model/resolve",
    "org\\model/x",
    "org/model?revision=main",
    "org/model#x",
    "org/mo%2fdel",
    "org%2f..%2f/model",
    "org/model\r\nHost: 127.0.0.1",
    "org/model\n",
    "org/model\0",
    "org/mod\u2024el",
    "\uff0f\uff0f127.0.0.1/model",
    "",
]
REVISIONS = [
    "main",
    "../../main",
    "refs/pr/1",
    COMMIT + "/..",
    COMMIT.upper()[:-1] + "G",
    COMMIT + "\n",
]
FILES = [
    "/etc/passwd",
    "../config.json",
    "a/../../b",
    "//127.0.0.1/x",
    "a//b",
    "",
    ".",
    "..",
    "a\0",
]


@pytest.mark.parametrize("repository", IDS, ids=ascii)
def test_an_id_is_one_or_two_plain_names(repository: str) -> None:
    with pytest.raises(ValidationError):
        HubModel(source="hub", id=repository, revision=COMMIT)


@pytest.mark.parametrize("revision", REVISIONS, ids=ascii)
def test_a_revision_is_a_commit(revision: str) -> None:
    with pytest.raises(ValidationError):
        HubModel(source="hub", id="org/model", revision=revision)


@pytest.mark.parametrize("path", FILES, ids=ascii)
def test_a_file_of_a_repository_is_below_it(path: str) -> None:
    assert not is_plain(path)


@given(repository=st.from_regex(REPOSITORY_PATTERN, fullmatch=True))
def test_whatever_is_accepted_stays_at_the_endpoint(repository: str) -> None:
    try:
        found = hf_hub_url(repository, "config.json", revision=COMMIT, endpoint=ENDPOINT)
    except HFValidationError:  # `HubRepository` answers that there is no such repository
        return
    url = urlsplit(found)
    assert f"{url.scheme}://{url.netloc}" == ENDPOINT
    assert url.path == f"/{repository}/resolve/{COMMIT}/config.json"
    assert ".." not in url.path.split("/")

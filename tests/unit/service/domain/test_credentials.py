"""Which credential of a tenant is for which place."""

from __future__ import annotations

import pickle

import pytest
from pydantic import SecretStr

from service.domain.credentials import NO_CREDENTIALS, Credentials, HubToken, S3Keys
from service.domain.spec.job import JobSpec
from service.domain.spec.sources import HubModel, S3Data
from tests.fixtures.jobs import small_spec

HUB = "https://hub.test"
CANARY = "canary-secret"


def keys(name: str, *prefixes: str) -> S3Keys:
    return S3Keys(
        "t", name, prefixes, SecretStr("canary-id"), SecretStr(CANARY), SecretStr("canary-session")
    )


TOKEN = HubToken("t", "hub", HUB, SecretStr(CANARY))
OUTER, INNER = keys("outer", "s3://team-a/"), keys("inner", "s3://team-b/", "s3://team-a/x/y/")
HELD = Credentials((TOKEN, OUTER, INNER))


def test_a_token_is_for_its_hub_alone() -> None:
    assert HELD.for_hub(HUB) == HELD.for_hub(f"{HUB}/") == TOKEN
    for other in ("https://hub.test.evil", "https://hub", "http://hub.test", f"{HUB}/mirror"):
        assert HELD.for_hub(other) is None


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("s3://team-a", OUTER),
        ("s3://team-a/", OUTER),
        ("s3://team-a/x", OUTER),
        ("s3://team-a/x/yz", OUTER),
        ("s3://team-a/x/y", INNER),
        ("s3://team-a/x/y/", INNER),
        ("s3://team-a/x/y/z.jsonl", INNER),
        ("s3://team-b/z", INNER),
        ("s3://team-ab/z", None),
        ("s3://team", None),
    ],
)
def test_the_longest_prefix_around_a_place_counts(uri: str, found: S3Keys | None) -> None:
    assert HELD.for_s3(uri) == found
    assert NO_CREDENTIALS.for_s3(uri) is None


def with_sources(spec: JobSpec, uri: str) -> JobSpec:
    data = S3Data(source="s3", uri=uri)
    calibration = spec.calibration.model_copy(update={"data": data})
    model = HubModel(source="hub", id="team/model", revision=40 * "0")
    return spec.model_copy(update={"model": model, "calibration": calibration})


def test_a_job_needs_those_of_what_it_names() -> None:
    assert HELD.needed_by(small_spec(), HUB) == NO_CREDENTIALS
    spec = with_sources(small_spec(), "s3://team-a/texts")
    assert HELD.needed_by(spec, HUB) == Credentials((TOKEN, OUTER))
    assert HELD.needed_by(spec, "https://mirror.test") == Credentials((OUTER,))


def test_they_show_no_secret_and_survive_the_way_to_a_worker() -> None:
    assert "canary" not in f"{HELD} {HELD!r} {HELD.held}"
    assert pickle.loads(pickle.dumps(HELD)) == HELD
    assert OUTER.secrets == ("canary-id", CANARY, "canary-session")

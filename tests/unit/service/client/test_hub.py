"""A branch of a repository on the hub becomes the commit that it names now."""

from __future__ import annotations

import pytest

from service.client.hub import commit_of
from service.client.request import ValueInvalid, source
from tests.fixtures.hub import REVISION, HubServer


@pytest.fixture(autouse=True)
def endpoint(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    hub.add("model", "org/model", {"config.json": b"{}"})


def test_a_revision_becomes_its_commit() -> None:
    assert commit_of("model", "org/model", REVISION) == REVISION
    found = source("hub:org/model@a-tag", lambda repository, revision: f"{repository} {revision}")
    assert found == {"source": "hub", "id": "org/model", "revision": "org/model a-tag"}
    bare = source("hub:org/model", lambda _, revision: revision)
    assert bare["revision"] == "main"


def test_a_full_commit_is_not_looked_up() -> None:
    def unused(*_: str) -> str:
        raise AssertionError

    assert source(f"hub:org/model@{REVISION}", unused)["revision"] == REVISION


@pytest.mark.parametrize(
    ("kind", "repository", "revision"),
    [("model", "org/model", "none"), ("model", "org/none", "main"), ("dataset", "org/model", "x")],
)
def test_what_the_hub_does_not_have_is_refused(kind: str, repository: str, revision: str) -> None:
    with pytest.raises(ValueInvalid, match=rf"no {kind} '{repository}' with the revision"):
        commit_of(kind, repository, revision)  # type: ignore[arg-type]


def test_a_hub_that_does_not_answer_is_named(hub: HubServer) -> None:
    hub.stop()
    with pytest.raises(ValueInvalid, match=f"{hub.endpoint} does not say .* hub:org/model@<40"):
        commit_of("model", "org/model", "main")


def test_an_answer_that_is_no_commit_is_refused(hub: HubServer) -> None:
    hub.status = 500
    with pytest.raises(ValueInvalid, match="status 500"):
        commit_of("model", "org/model", "main")

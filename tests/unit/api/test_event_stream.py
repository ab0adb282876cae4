"""Open streams are bounded, and end once their keys are no longer valid."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import ExitStack
from datetime import timedelta
from functools import partial

import httpx
import pytest
from pydantic import SecretStr

from api import board, event_stream, feed
from api.access import ADMIN_KEY_ID, NO_KEY_ID
from api.event_stream import OpenStreams
from service.domain.job import DEFAULT_TENANT
from service.domain.principal import Scope
from service.errors import DatabaseUnavailable, FollowersFull, TooManyFollowers
from service.settings import Settings
from service.store import keys as store_keys
from service.store.store import Store
from tests.fixtures.jobs import small_spec
from tests.fixtures.streams import permit, run_within

SECONDS = 10.0
run = partial(run_within, SECONDS)
HOUR = timedelta(hours=1)
STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "KEY_CHECK_SECONDS", 0.01)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"require_keys": True, "admin_key": SecretStr("ep_" + 40 * "a")}
    )


class Looks:
    """Says that all keys but those `revoked` are valid; fails while `trouble` is set."""

    def __init__(self, *revoked: str) -> None:
        self.made: list[set[str]] = []
        self.trouble: Exception | None = None
        self._revoked = set(revoked)

    def __call__(self, ids: Collection[str]) -> set[str]:
        self.made.append(set(ids))
        if self.trouble:
            raise self.trouble
        return set(ids) - self._revoked


def test_streams_are_bounded_per_tenant_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "MAX_FOLLOWERS_PER_TENANT", 1)
    monkeypatch.setattr(event_stream, "MAX_FOLLOWERS", 2)
    streams = OpenStreams(Looks())
    with streams.opened(permit(tenant="one")):
        with pytest.raises(TooManyFollowers, match="1 streams"):
            streams.check_room("one")
        streams.check_room("two")
        with streams.opened(permit(tenant="two")), pytest.raises(FollowersFull):
            streams.check_room("three")
    streams.check_room("one")
    assert streams.count() == 0


@pytest.mark.usefixtures("quick")
def test_one_look_is_for_the_keys_of_all_streams() -> None:
    async def check() -> None:
        looks = Looks("revoked")
        permits = [permit(each) for each in ("valid", "revoked") for _ in range(50)]
        async with OpenStreams(looks) as streams:
            with ExitStack() as stack:
                for each in permits:
                    stack.enter_context(streams.opened(each))
                await permits[-1].news.wait()
                assert looks.made == [{"valid", "revoked"}]
                assert [each.lapsed for each in permits] == [False] * 50 + [True] * 50

    run(check())


@pytest.mark.usefixtures("quick")
def test_no_look_is_made_for_the_settings_key_nor_without_keys() -> None:
    async def check() -> None:
        looks, own = Looks(ADMIN_KEY_ID, NO_KEY_ID, "revoked"), permit("revoked")
        permits = [permit(ADMIN_KEY_ID), permit(NO_KEY_ID)]
        async with OpenStreams(looks) as streams:
            with ExitStack() as stack:
                for each in permits:
                    stack.enter_context(streams.opened(each))
                await streams._check_keys()
                assert looks.made == []
                with streams.opened(own):
                    await own.news.wait()
            assert looks.made == [{"revoked"}]
            assert not any(each.lapsed for each in permits)

    run(check())


@pytest.mark.usefixtures("quick")
def test_an_outage_ends_no_stream_and_delays_the_end(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        looks, lapsing = Looks("revoked"), permit("revoked")
        looks.trouble = DatabaseUnavailable("gone")
        async with OpenStreams(looks) as streams:
            with streams.opened(lapsing):
                while len(looks.made) < 2:
                    await asyncio.sleep(0.005)
                assert not lapsing.lapsed
                looks.trouble = None
                await lapsing.news.wait()
                assert lapsing.lapsed

    run(check())
    assert caplog.messages[0] == "The keys of open streams go unchecked: gone"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("page", [False, True])
@pytest.mark.parametrize("expires", [False, True])
def test_a_stream_ends_once_its_key_is_no_longer_valid(
    live: httpx.Client,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    page: bool,
    expires: bool,
) -> None:
    for module in (feed, board):  # a stream that does not end is silent, and the client gives up
        monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 10 * SECONDS)
    key, text = store.keys.create(DEFAULT_TENANT, Scope.READER, lifetime=HOUR)
    job_id = store.users(DEFAULT_TENANT).create(small_spec()).id
    path = "/rows" if page else f"/v1/jobs/{job_id}/events"
    headers = STREAM | {"Authorization": f"Bearer {text}"}
    with live.stream("GET", path, headers=headers, timeout=SECONDS) as response:
        assert response.status_code == 200
        pieces = response.iter_text()
        received = next(pieces)
        if expires:
            assert key.expires_at is not None
            later = key.expires_at
            monkeypatch.setattr(store_keys, "clock", lambda _: later)
        else:
            store.keys.revoke(key.id)
        received += "".join(pieces)
    assert "event: end" not in received
    refused = 303 if page else 401  # a page leads to the sign-in
    assert live.get(path, headers=headers).status_code == refused

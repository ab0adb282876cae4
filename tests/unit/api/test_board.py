"""Open lists of jobs learn what has changed, from one reader, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from functools import partial

import pytest

from api import board as board_module
from api.board import Board
from api.frames import FIRST, HEARTBEAT
from api.pages.rows import progress_of
from api.schemas.jobs import Job
from service.domain.job import DEFAULT_TENANT
from service.domain.states import JobState, Step
from service.errors import DatabaseUnavailable, FollowersFull, ModelInvalid
from service.store.news import Progress, Standing
from service.store.store import Store
from tests.fixtures.jobs import at_once, small_spec
from tests.fixtures.streams import permit, run_within

SECONDS = 20.0
run = partial(run_within, SECONDS)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest) -> Store:
    store: Store = request.getfixturevalue(
        "job_store" if request.param == "sqlite" else "postgres_store"
    )
    return store


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(board_module, "PAUSE_SECONDS", 0.01)


class Looks:
    """Looks at the jobs as the store does, counted; they fail while `trouble` is set."""

    def __init__(self, store: Store) -> None:
        self.made = 0
        self.trouble: Exception | None = None
        self._store = store

    def __call__(self, job_ids: Collection[str], tenants: Collection[str]) -> Standing:
        self.made += 1
        if self.trouble:
            raise self.trouble
        return self._store.news.standing(job_ids, tenants)


class List:
    """A list that shows the jobs' progress as plain text."""

    tenant = DEFAULT_TENANT

    def __init__(self, store: Store, *job_ids: str, newest: str | None = None) -> None:
        self._store = store
        self.newest = newest
        standing = store.news.standing(job_ids, {DEFAULT_TENANT})
        self.shown: dict[str, Progress] = dict(standing.progress)

    def frames(self, changed: Collection[str], newest: str | None) -> bytes:
        standing = self._store.news.standing(changed, {DEFAULT_TENANT})
        kept = {each: before for each, before in self.shown.items() if each not in changed}
        self.shown = kept | dict(standing.progress)
        lines = [f"{each} {standing.progress.get(each, 'gone')}" for each in changed]
        if newest is not None:
            self.newest = newest
            lines.append(f"new {newest}")
        return "\n".join(lines).encode()


async def following(frames: AsyncGenerator[bytes, None], text: str) -> str:
    """The first frame with this text."""
    async for frame in frames:
        if text in frame.decode():
            return frame.decode()
    raise AssertionError("the stream has ended")


def create(store: Store) -> str:
    return store.users(DEFAULT_TENANT).create(small_spec()).id


def test_progress_is_the_same_in_a_look_and_in_the_api(store: Store) -> None:
    queued, job_id = create(store), create(store)
    store.users(DEFAULT_TENANT).cancel(queued)
    store.claims.claim()
    for done in (1, 2):
        store.attempts.progress(job_id, 1, Step.CALIBRATE, done, 2, "sequences")
    store.attempts.progress(job_id, 1, Step.SOLVE, 3, 9, "layers")
    looked = store.news.standing([queued, job_id], {DEFAULT_TENANT}).progress
    for each in (queued, job_id):
        shown = Job.of(store.records.get(each), root_path="", dashboard_url="")
        assert progress_of(shown) == looked[each]
    assert looked[job_id] == (JobState.RUNNING, 1, 2 + 3 + 2 + 1)


def test_a_list_follows_progress_ends_deletions_and_new_jobs(store: Store) -> None:
    async def follow() -> None:
        first = create(store)
        shown = List(store, first, newest=first)
        users, attempts = store.users(DEFAULT_TENANT), store.attempts
        async with (
            Board(store.news.standing) as board,
            aclosing(board.follow(shown, permit())) as frames,
        ):
            assert await anext(frames) == FIRST
            await asyncio.to_thread(store.claims.claim)
            assert "RUNNING" in await following(frames, first)
            await asyncio.to_thread(attempts.progress, first, 1, Step.SOLVE, 5, 9, "layers")
            assert "done=6" in await following(frames, first)
            failure = ModelInvalid("no").failure()
            await asyncio.to_thread(attempts.fail, first, 1, failure, at_once(1))
            assert "FAILED" in await following(frames, first)
            await asyncio.to_thread(users.retry, first)
            assert "QUEUED" in await following(frames, first)
            second = await asyncio.to_thread(create, store)
            assert await following(frames, "new") == f"new {second}"
            await asyncio.to_thread(users.cancel, first)
            assert "CANCELLED" in await following(frames, first)
            await asyncio.to_thread(users.delete, first)
            assert await following(frames, first) == f"{first} gone"
        assert shown.shown == {}

    run(follow())


def test_lists_without_new_jobs_and_of_other_tenants_stay_as_they_are(store: Store) -> None:
    async def follow() -> None:
        mine = create(store)
        older, shown = List(store, mine), List(store, mine, newest=mine)
        looks = Looks(store)
        async with (
            Board(looks) as board,
            aclosing(board.follow(older, permit())) as frames,
            aclosing(board.follow(shown, permit())) as others,
        ):
            await asyncio.gather(anext(frames), anext(others))
            await asyncio.to_thread(store.users("other").create, small_spec())
            await asyncio.to_thread(create, store)
            assert "new" in await following(others, "new")
            await asyncio.to_thread(store.claims.claim)
            frame = await following(frames, mine)
            assert "new" not in frame
            made = looks.made
        await asyncio.sleep(0.1)
        assert looks.made <= made + 1  # nobody looks any more

    run(follow())


def test_an_outage_of_the_database_only_delays(store: Store) -> None:
    async def follow() -> None:
        looks, job_id = Looks(store), create(store)
        looks.trouble = DatabaseUnavailable("away")
        async with (
            Board(looks) as board,
            aclosing(board.follow(List(store, job_id), permit())) as frames,
        ):
            await anext(frames)
            waiting = asyncio.ensure_future(following(frames, job_id))
            await asyncio.to_thread(store.claims.claim)
            while looks.made < 3:
                await asyncio.sleep(0.01)
            looks.trouble = None
            assert "RUNNING" in await waiting

    run(follow())


def test_a_list_that_cannot_be_rendered_is_rendered_later(store: Store) -> None:
    async def follow() -> None:
        job_id = create(store)
        shown = List(store, job_id)
        render, failures = shown.frames, [DatabaseUnavailable("away")]

        def failing(changed: Collection[str], newest: str | None) -> bytes:
            if failures:
                raise failures.pop()
            return render(changed, newest)

        shown.frames = failing  # type: ignore[method-assign]
        async with (
            Board(store.news.standing) as board,
            aclosing(board.follow(shown, permit())) as frames,
        ):
            await anext(frames)
            await asyncio.to_thread(store.claims.claim)
            assert await anext(frames) == HEARTBEAT
            assert "RUNNING" in await following(frames, job_id)

    run(follow())


def test_there_is_room_for_so_many_jobs(job_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "MAX_JOBS", 2)

    async def follow() -> None:
        shown = List(job_store, create(job_store), create(job_store))
        async with Board(job_store.news.standing) as board:
            board.check_room(2)
            async with aclosing(board.follow(shown, permit())) as frames:
                await anext(frames)
                waiting = asyncio.ensure_future(anext(frames, None))
                await asyncio.sleep(0)
                board.check_room(0)
                with pytest.raises(FollowersFull):
                    board.check_room(1)
                board.close()
                assert await waiting is None

    run(follow())


def test_a_quiet_list_has_heartbeats(job_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(board_module, "HEARTBEAT_SECONDS", 0.05)

    async def follow() -> None:
        shown = List(job_store, create(job_store))
        async with (
            Board(job_store.news.standing) as board,
            aclosing(board.follow(shown, permit())) as frames,
        ):
            assert [await anext(frames) for _ in range(3)] == [FIRST, HEARTBEAT, HEARTBEAT]

    run(follow())


def test_a_list_whose_permit_lapses_ends_at_once(job_store: Store) -> None:
    async def follow() -> None:
        shown, lapsing = List(job_store, create(job_store)), permit()
        async with (
            Board(job_store.news.standing) as board,
            aclosing(board.follow(shown, lapsing)) as frames,
        ):
            await anext(frames)
            waiting = asyncio.ensure_future(anext(frames, None))
            await asyncio.sleep(0)
            lapsing.lapse()
            assert await waiting is None
            assert not board._watches

    run(follow())

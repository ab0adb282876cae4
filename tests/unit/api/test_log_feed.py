"""Followers of a log get what is printed, once, from one reader of each log."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api import log_feed as module
from api.frames import FIRST, HEARTBEAT
from api.log_feed import LogFeed, LogName, Part
from service.client.following import frames as frames_of
from service.errors import ClusterUnavailable, FollowersFull, JobNotFound, LogNotFound
from service.logs.attempt_logs import LogPage
from tests.fixtures.streams import permit, run_within

SECONDS = 20.0
run = partial(run_within, SECONDS)
NAME = LogName("job-1", 1, "driver")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)


class Printed:
    """A log that grows, read as `AttemptLogs` reads it, with its reads counted."""

    def __init__(self, text: str = "") -> None:
        self.data = text.encode()
        self.complete = False
        self.trouble: Exception | None = None
        self.reads = 0
        self.at_a_time = 0

    def print(self, text: str) -> None:
        self.data += text.encode()

    def __call__(self, after: int | None) -> LogPage:
        self.reads += 1
        self.at_a_time += 1
        assert self.at_a_time == 1, "two readers of one log"
        try:
            if self.trouble:
                raise self.trouble
            return self._page(after)
        finally:
            self.at_a_time -= 1

    def _page(self, after: int | None) -> LogPage:
        data, complete = self.data, self.complete
        start = max(0, len(data) - module.PART_BYTES) if after is None else after
        part = data[start : start + module.PART_BYTES]
        end = start + len(part)
        text = part.decode(errors="replace")
        return LogPage(1, "driver", ("driver",), start, text, end, complete and end == len(data))


class Seen:
    """What a browser makes of the frames."""

    def __init__(self, after: int = 0) -> None:
        self.text = ""
        self.after = after
        self.jumps: list[int] = []
        self.ended = False

    def take(self, chunk: bytes) -> None:
        for frame in frames_of(chunk.decode().split("\n")):
            if frame.type == "end":
                self.ended = True
                continue
            data = json.loads(frame.data)
            if data["start"] != self.after:
                self.jumps.append(data["start"])
            self.text += data["text"]
            self.after = data["next_after"]


async def until(seen: Seen, frames: AsyncGenerator[bytes, None], text: str) -> None:
    while text not in seen.text:
        seen.take(await anext(frames))


async def all_of(frames: AsyncGenerator[bytes, None], seen: Seen) -> Seen:
    async for chunk in frames:
        seen.take(chunk)
    return seen


def test_a_log_is_followed_to_its_end() -> None:
    async def follow() -> None:
        printed, seen = Printed("one\n"), Seen()
        async with LogFeed() as feed, aclosing(feed.follow(NAME, printed, 0, permit())) as frames:
            assert await anext(frames) == FIRST
            await until(seen, frames, "one\n")
            printed.print("two\n")
            await until(seen, frames, "two\n")
            printed.print("three\n")
            printed.complete = True
            await all_of(frames, seen)
        assert (seen.text, seen.jumps, seen.ended) == ("one\ntwo\nthree\n", [], True)

    run(follow())


def test_many_followers_cost_one_reader() -> None:
    async def follow() -> None:
        printed = Printed("first\n")
        async with LogFeed() as feed, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(all_of(feed.follow(NAME, printed, 0, permit()), Seen()))
                for _ in range(200)
            ]
            await asyncio.sleep(0)
            for number in range(20):
                before = printed.reads
                printed.print(f"line {number}\n")
                while printed.reads < before + 2:
                    await asyncio.sleep(0)
            looks = printed.reads
            printed.complete = True
        for task in tasks:
            seen = task.result()
            assert (seen.text.encode(), seen.jumps, seen.ended) == (printed.data, [], True)
        assert looks < 200

    run(follow())


def test_one_who_comes_later_goes_on_where_the_page_ended() -> None:
    async def follow() -> None:
        printed = Printed("first\nsecond\nthird\n")
        async with LogFeed() as feed, AsyncExitStack() as opened:
            early = await opened.enter_async_context(
                aclosing(feed.follow(NAME, printed, 0, permit()))
            )
            seen = Seen()
            await until(seen, early, "third")
            late, rest = Seen(6), feed.follow(NAME, printed, 6, permit())
            await until(late, await opened.enter_async_context(aclosing(rest)), "third")
            assert (late.text, late.jumps) == ("second\nthird\n", [])
            ahead, rest = Seen(25), feed.follow(NAME, printed, 25, permit())
            printed.print("fourth, of which the page has a part\n")
            await until(ahead, await opened.enter_async_context(aclosing(rest)), "part\n")
            assert (ahead.text, ahead.jumps) == (printed.data[25:].decode(), [])

    run(follow())


def test_a_slow_client_misses_lines_and_can_see_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", 40)

    async def follow() -> None:
        printed, seen = Printed("first\n"), Seen()
        async with LogFeed() as feed, aclosing(feed.follow(NAME, printed, 0, permit())) as frames:
            await until(seen, frames, "first\n")
            for number in range(20):  # it takes nothing meanwhile
                before = printed.reads
                printed.print(f"line {number:03}\n")
                while printed.reads < before + 2:
                    await asyncio.sleep(0)
            printed.complete = True
            await all_of(frames, seen)
        assert len(seen.jumps) == 1
        assert seen.text == "first\n" + printed.data[seen.jumps[0] :].decode()
        assert len(seen.text) <= 6 + 40 + 9

    run(follow())


def test_a_reader_that_is_behind_goes_on_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 1000)

    async def follow() -> None:
        printed, seen = Printed(10_000 * "a" + "\n"), Seen()
        async with LogFeed() as feed, aclosing(feed.follow(NAME, printed, 0, permit())) as frames:
            await until(seen, frames, "a\n")
            assert seen.jumps == [10_001 - 1000]
            printed.print(100_000 * "b" + "\n")
            await until(seen, frames, "b\n")
            assert len(seen.text) == 3000
            assert printed.reads < 20

    run(follow())


@pytest.mark.parametrize("error", [JobNotFound("It is gone."), LogNotFound("It is gone.")])
def test_what_is_gone_ends_the_stream(error: Exception) -> None:
    async def follow() -> None:
        printed, seen = Printed("one\n"), Seen()
        async with LogFeed() as feed, aclosing(feed.follow(NAME, printed, 0, permit())) as frames:
            await until(seen, frames, "one\n")
            printed.trouble = error
            assert (await all_of(frames, seen)).ended

    run(follow())


@pytest.mark.parametrize("error", [ClusterUnavailable("Ray is away."), RuntimeError("a defect")])
def test_trouble_is_logged_once_and_the_log_goes_on(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def follow() -> None:
        printed, seen = Printed("one\n"), Seen()
        async with LogFeed() as feed, aclosing(feed.follow(NAME, printed, 0, permit())) as frames:
            await until(seen, frames, "one\n")
            printed.trouble, before = error, printed.reads
            while printed.reads < before + 3:
                await asyncio.sleep(0.001)
            printed.trouble = None
            printed.print("two\n")
            await until(seen, frames, "two\n")
        assert (seen.text, seen.jumps) == ("one\ntwo\n", [])

    run(follow())
    assert [str(error) in each for each in caplog.messages] == [True]


def test_nobody_follows_and_nobody_reads() -> None:
    async def follow() -> None:
        printed, seen = Printed("one\n"), Seen()
        async with LogFeed() as feed:
            async with aclosing(feed.follow(NAME, printed, 0, permit())) as frames:
                await until(seen, frames, "one\n")
            await asyncio.sleep(0)
            before = printed.reads
            await asyncio.sleep(0.1)
            assert printed.reads <= before + 1  # one may have been under way
            feed.check_room(NAME)

    run(follow())


def test_a_stream_ends_with_its_permit_and_with_the_server() -> None:
    async def follow() -> None:
        printed, lapsing = Printed("one\n"), permit()
        async with LogFeed() as feed:
            revoked, seen = feed.follow(NAME, printed, 0, lapsing), Seen()
            await until(seen, revoked, "one\n")
            lapsing.lapse()
            assert not (await all_of(revoked, seen)).ended
            other, seen = feed.follow(NAME, printed, 0, permit()), Seen()
            await until(seen, other, "one\n")
            feed.close()
            assert not (await all_of(other, seen)).ended

    run(follow())


def test_silence_is_broken_by_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.02)

    async def follow() -> None:
        async with LogFeed() as feed, aclosing(feed.follow(NAME, Printed(), 0, permit())) as frames:
            assert [await anext(frames) for _ in range(3)] == [FIRST, HEARTBEAT, HEARTBEAT]

    run(follow())


def test_followed_logs_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LOGS", 1)

    async def follow() -> None:
        async with LogFeed() as feed:
            feed.check_room(NAME)
            async with aclosing(feed.follow(NAME, Printed("one\n"), 0, permit())) as frames:
                await until(Seen(), frames, "one\n")
                feed.check_room(NAME)
                with pytest.raises(FollowersFull):
                    feed.check_room(LogName("job-1", 1, "worker-0"))

    run(follow())


CRAFTED = [
    "\n\nevent: end\ndata: {}\n\n",
    "</code></pre><script>alert(1)</script>",
    "data: x\rid: 9\r\nretry: 1\u2028\u2029\x85",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x00 \u202etxt.exe",
]


@pytest.mark.parametrize("text", CRAFTED)
def test_no_line_of_a_log_is_a_frame_or_commands_a_terminal(text: str) -> None:
    frame = Part(5, 5 + len(text.encode()), text).frame()
    (read,) = frames_of(frame.decode().split("\n"))
    assert frame.count(b"\n") == 4
    assert b"\r" not in frame
    assert read.type == "log"
    data = json.loads(read.data)
    assert (data["start"], data["next_after"]) == (5, 5 + len(text.encode()))
    assert all(each.isprintable() or each in "\n\t" for each in data["text"])
    assert text.count("\n") == data["text"].count("\n")


@given(st.text(), st.integers(0, 30))
def test_a_part_is_cut_at_an_offset(text: str, offset: int) -> None:
    data = text.encode()
    rest = Part(7, 7 + len(data), text).beyond(7 + min(offset, len(data)))
    assert rest.text == data[offset:].decode(errors="replace")
    assert rest.end == 7 + len(data)


def test_a_part_whose_bytes_were_replaced_is_not_cut() -> None:
    part = Part(0, 4, b"a\xffb\n".decode(errors="replace"))
    assert part.beyond(3) == part

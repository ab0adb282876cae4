"""Frames are read from the lines of a stream."""

from __future__ import annotations

import doctest

from service.client import following
from service.client.following import END, ENDED, Frame, frames


def test_the_examples_hold() -> None:
    assert doctest.testmod(following).failed == 0


def test_a_value_may_have_colons_and_no_space() -> None:
    assert list(frames(["event:x", 'data:{"a": 1}', "", ""])) == [Frame("x", '{"a": 1}')]


def test_a_type_holds_for_one_frame() -> None:
    lines = ["event: a", "data: 1", "", "data: 2", ""]
    assert list(frames(lines)) == [Frame("a", "1"), Frame("", "2")]


def test_a_stream_that_ends_at_once_has_an_end() -> None:
    assert [frame.type for frame in frames(ENDED)] == [END]

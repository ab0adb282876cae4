"""Text of strangers neither commands a terminal nor fails to be encoded."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import MAX_DETAIL_CHARACTERS, DataInvalid, ModelInvalid
from service.printable import LAYOUT, printable, shortened

ANY_TEXT = st.text(st.characters(exclude_categories=()))  # surrogates included


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Übung 模型.txt\n\tline 🔑", "Übung 模型.txt\n\tline 🔑"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("\x9b2J", r"\x9b2J"),
        ("a\0b\r", r"a\x00b\r"),
        ("\udcff", r"\udcff"),
        ("invoice\u202efdp.exe", r"invoice\u202efdp.exe"),
    ],
)
def test_invisible_characters_are_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(ANY_TEXT)
def test_printable_text_is_printable_and_stays_as_it_is(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert shown.translate({ord(each): None for each in LAYOUT}).isprintable()
    assert printable(shown) == shown


def test_a_long_text_is_cut() -> None:
    assert shortened("x" * 80) == "x" * 80
    assert shortened("x" * 81) == "x" * 80 + "…"


def test_what_a_user_is_told_is_one_line() -> None:
    assert DataInvalid("no field 'a\nb\t'").detail == r"no field 'a\nb\t'"


def test_the_detail_of_an_error_is_printable_and_bounded() -> None:
    error = ModelInvalid("\x1b[2J" * 100_000, param="\udcff")
    assert len(error.detail) == MAX_DETAIL_CHARACTERS + 1
    assert error.detail.startswith(r"\x1b[2J\x1b[2J")
    assert (error.param, str(error)) == (r"\udcff", error.detail)
    assert pickle.loads(pickle.dumps(error)).detail == error.detail

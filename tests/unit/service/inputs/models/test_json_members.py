"""An object is read member by member, as json.loads reads it whole."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.inputs.models import json_members
from service.inputs.models.json_members import read_members, read_object, read_value

VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


def members(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}

    def visit(key: str, at: int) -> int:
        found[key], end = read_value(text, at)
        return end

    read_object(text, visit)
    return found


@given(st.dictionaries(st.text(), VALUE), st.sampled_from([None, 1]), st.booleans())
def test_it_reads_what_json_does(value: dict[str, Any], indent: int | None, ascii_: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_)
    assert members(f" \n{text}\t ") == value


@given(st.text('{}[]":,1e-. atrue\\u', max_size=12))
def test_it_refuses_what_json_refuses(text: str) -> None:
    expected: Any = None
    with suppress(ValueError):
        expected = json.loads(text)
    if isinstance(expected, dict):
        assert members(text) == expected
    else:
        with pytest.raises(ValueError, match=r"character \d+"):
            members(text)


@pytest.mark.parametrize("length", [1020, 1021, 1022, 1023, 1024, 4000])
def test_a_value_at_the_end_of_the_first_look(length: int) -> None:
    for value in (int("7" * length), "x" * length, [1] * (length // 2)):
        assert members(json.dumps({"a": value, "b": 1})) == {"a": value, "b": 1}


def test_a_long_value_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_members, "MAX_VALUE_CHARACTERS", 2000)
    assert members(json.dumps({"a": "x" * 1990}))
    with pytest.raises(ValueError, match="at character 6 is longer than 2000"):
        members(json.dumps({"a": "x" * 2000, "b": 1}))
    with pytest.raises(ValueError, match="character"):
        members(json.dumps({"x" * 2000: 1}))


def test_a_nested_object_is_visited_where_it_stands() -> None:
    text, found = '{"a": {"b": 1, "c": {}}, "d": 2}', []

    def visit(key: str, at: int) -> int:
        found.append(key)
        return read_members(text, at, visit) if text[at] == "{" else read_value(text, at)[1]

    read_object(text, visit)
    assert found == ["a", "b", "c", "d"]


def test_deep_nesting() -> None:
    with pytest.raises(ValueError, match="Nested too deeply"):
        members('{"a": ' + "[" * 100_000 + "}")

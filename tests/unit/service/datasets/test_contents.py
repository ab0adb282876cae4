"""The check of an upload agrees with what a worker reads, however the bytes arrive."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.datasets import contents
from service.datasets.contents import Check, Gunzip, JsonLinesCheck, ParquetStart, TextCheck
from service.errors import DataInvalid
from service.inputs.texts.documents import Skipped, read_documents

CHAT = [{"role": "user", "content": "Hello"}]
ROWS = [{"text": "One."}, {"text": " \n"}, {"text": None}, {"text": "grün"}]


def jsonl(*rows: object) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def checked(check: Check, data: bytes, size: int) -> Check:
    for start in range(0, len(data), size):
        check.feed(data[start : start + size])
    check.finish()
    return check


def refused(check: Check, data: bytes, size: int = 2**18) -> DataInvalid:
    with pytest.raises(DataInvalid) as caught:
        checked(check, data, size)
    return caught.value


def read(name: str, data: bytes) -> tuple[int, int] | None:
    """The documents and the empty rows that a worker finds; None if it refuses the file."""
    skipped = Skipped()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder).resolve() / name
        file.write_bytes(data)
        try:
            found = list(
                read_documents(file, "*", "text", "p", render=lambda *_: "chat", skipped=skipped)
            )
        except DataInvalid:
            return None
    return len(found), skipped.empty_rows


def check(name: str, data: bytes, size: int) -> tuple[int, int] | None:
    made: Check = TextCheck() if name.endswith(".txt") else JsonLinesCheck("text")
    try:
        checked(made, data, size)
    except DataInvalid:
        return None
    return made.documents, made.empty_rows


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_rows_are_counted_however_they_arrive(size: int) -> None:
    data = b"\xef\xbb\xbf" + jsonl(*ROWS, {"messages": CHAT}, {"messages": []})[:-1]
    assert check("a.jsonl", data, size) == read("a.jsonl", data) == (3, 3)


@given(
    text=st.one_of(st.binary(max_size=12), st.text(max_size=12).map(str.encode)),
    size=st.integers(1, 12),
)
def test_a_text_is_accepted_if_a_worker_reads_it(text: bytes, size: int) -> None:
    assert check("a.txt", text, size) == read("a.txt", text)


@given(
    lines=st.lists(
        st.one_of(
            st.binary(max_size=6),
            st.sampled_from([b"", b" ", b'{"text": "x"}', b'{"text": ""}', b'{"text": 5}', b"[]"]),
            st.just(json.dumps({"messages": CHAT}).encode()),
        ),
        max_size=4,
    ),
    size=st.integers(1, 20),
)
def test_rows_are_accepted_if_a_worker_reads_them(lines: list[bytes], size: int) -> None:
    data = b"\n".join(lines)
    assert check("a.jsonl", data, size) == read("a.jsonl", data)


@pytest.mark.parametrize("size", [1, 4, 1000])
@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"caf\xe9 au lait", "it is not UTF-8 (byte 0xe9 at position 3)"),
        (b"caf\xc3", "it is not UTF-8 (byte 0xc3 at position 3)"),
        (b"GIF\0", "it is binary: it contains null bytes, first at position 3"),
        (b" \n\n", "There is no text in the file."),
        (b"\xef\xbb\xbf", "There is no text in the file."),
    ],
)
def test_what_is_no_text(data: bytes, said: str, size: int) -> None:
    error = refused(TextCheck(), data, size)
    assert said in error.detail
    assert error.param is None


def test_utf_16_is_named() -> None:
    assert "it is UTF-16" in refused(TextCheck(), "text".encode("utf-16")).detail


@pytest.mark.parametrize("size", [1, 5, 1000])
@pytest.mark.parametrize(
    ("line", "said", "param"),
    [
        (b"nonsense", "'line 5' is not JSON: ", None),
        (b"[1]", "'line 5' is not a JSON object", None),
        (b'{"text": "caf\xe9"}', "'line 5': it is not UTF-8", None),
        (b'{"body": "x"}', "'line 5' has no field 'text'; it has: 'body'. Name", "text_field"),
        (b'{"text": 5}', "'text' of 'line 5' is int, not text.", "text_field"),
        (b'{"text": "\\ud800"}', "'line 5' contains half a character", "text_field"),
        (b'{"messages": [{"role": "user"}]}', "has no field 'text'", "text_field"),
        (b'{"messages": [{"role": "a", "content": 1}]}', "message 1 of 'messages'", "text_field"),
        (b'{"messages": [{"from": "a", "value": "b"}]}', "rename 'from' to 'role'", "text_field"),
    ],
)
def test_what_is_no_row(line: bytes, said: str, param: str | None, size: int) -> None:
    error = refused(JsonLinesCheck("text"), jsonl(*ROWS) + line + b"\n" + jsonl(*ROWS), size)
    assert said in error.detail
    assert error.param == param


def test_rows_without_any_text_are_refused() -> None:
    assert refused(JsonLinesCheck("text"), jsonl({"text": ""})).detail.startswith("There is no te")


@pytest.mark.parametrize("ended", [True, False])
def test_a_line_may_be_too_long(monkeypatch: pytest.MonkeyPatch, ended: bool) -> None:
    monkeypatch.setattr(contents, "MAX_LINE_BYTES", 64)
    line = jsonl({"text": "x" * 64})
    data = jsonl(*ROWS) + (line if ended else line[:-1])
    assert "'line 5' is larger than 64 bytes" in refused(JsonLinesCheck("text"), data).detail


def test_a_line_that_never_ends_is_not_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_LINE_BYTES", 64)
    check = JsonLinesCheck("text")
    check.feed(b"x" * 64)
    with pytest.raises(DataInvalid):
        check.feed(b"x")


@pytest.mark.parametrize(("name", "bound"), [("MAX_DOCUMENTS", 3), ("MAX_TEXT_BYTES", 40)])
def test_rows_have_bounds(monkeypatch: pytest.MonkeyPatch, name: str, bound: int) -> None:
    monkeypatch.setattr(contents, name, bound)
    assert f"more than {bound} " in refused(JsonLinesCheck("text"), jsonl(*ROWS)).detail


def test_a_text_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_DOCUMENT_BYTES", 10)
    checked(TextCheck(), b"x" * 10, 3)
    assert "larger than 10 bytes" in refused(TextCheck(), b"x" * 11).detail


@pytest.mark.parametrize(
    "data", [b"PAR2", gzip.compress(b"PAR1"), b""], ids=["another", "gzip", "empty"]
)
def test_what_is_no_parquet(data: bytes) -> None:
    refused(ParquetStart(), data)


def expanded(data: bytes, size: int) -> bytes:
    gunzip = Gunzip()
    pieces = (data[start : start + size] for start in range(0, len(data), size))
    whole = b"".join(part for piece in pieces for part in gunzip.expand(piece))
    gunzip.finish()
    return whole


@pytest.mark.parametrize("size", [1, 5, 100_000])
def test_gzip_is_expanded_however_it_arrives(size: int) -> None:
    one, other = jsonl(*ROWS), bytes(range(256)) * 4000
    members = gzip.compress(one) + gzip.compress(other) + b"\0" * 5
    assert expanded(members, size) == one + other


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (gzip.compress(b"x" * 1000)[:-1], "it ends before its compressed data does"),
        (gzip.compress(b"x") + b"garbage", "incorrect header check"),
        (b"\x1f\x8b nonsense that is no gzip", "unknown compression method"),
        (gzip.compress(b"x" * 1000)[:-8] + b"\1" * 8, "incorrect data check"),
    ],
    ids=["cut", "trailing", "header", "checksum"],
)
def test_damaged_gzip(data: bytes, said: str) -> None:
    with pytest.raises(DataInvalid, match=said):
        expanded(data, 7)


def test_a_bomb_is_not_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MIN_EXPANDED_BYTES", 2**20)
    bomb = gzip.compress(bytes(2**26))
    sizes: list[int] = []
    with pytest.raises(DataInvalid, match="expands to more than"):
        sizes.extend(map(len, Gunzip().expand(bomb)))
    assert max(sizes) <= contents.EXPANDED_BYTES
    assert sum(sizes) <= 256 * len(bomb)

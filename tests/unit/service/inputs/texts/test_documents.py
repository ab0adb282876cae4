"""Documents are read from text, JSONL and Parquet; tests cover each bound and each bad file."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as arrow
import pytest
from pyarrow import parquet

import service.inputs.texts.documents
import service.inputs.texts.rows
import service.inputs.texts.text_files
from service.errors import DataInvalid, DataNotFound, PathNotAllowed, UserError
from service.inputs.texts.documents import (
    CHECKED_FILES,
    Document,
    Record,
    Skipped,
    check_documents,
    check_records,
    read_documents,
    read_records,
)
from service.inputs.texts.rows import Chat
from service.inputs.texts.text_files import CHECKED_BYTES

PARAM = "calibration.data"
EVERYTHING = "**/*"


def read(root: Path, pattern: str = EVERYTHING, text_field: str = "text") -> list[Document]:
    return list(read_documents(root, pattern, text_field, PARAM))


def refused(kind: type[UserError], root: Path, *args: str) -> UserError:
    with pytest.raises(kind) as caught:
        read(root, *args)
    return caught.value


def test_each_text_file_is_a_document_in_the_order_of_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for path in ("c.txt", "b/z.py", "b/a.md", "a"):
        (tmp_path / path).write_text(f"text of {path}")
    assert read(tmp_path) == [
        Document(path, f"text of {path}") for path in ("a", "b/a.md", "b/z.py", "c.txt")
    ]


def test_a_single_file_is_read_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / ".notes").write_text("hidden, but named")
    assert read(tmp_path / ".notes", "*.txt") == [Document(".notes", "hidden, but named")]


def test_text_is_kept_as_it_is_but_for_the_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf\r\n gr\xc3\xbc\xc3\x9fe\t\n")
    assert read(tmp_path)[0].text == "\r\n grüße\t\n"


def test_documents_without_text_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "blank.txt").write_text(" \n\t\n")
    (tmp_path / "full.txt").write_text("x")
    assert [document.id for document in read(tmp_path)] == ["full.txt"]


@pytest.mark.parametrize("content", [b"", b" \n"])
def test_no_text_at_all_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    assert refused(DataInvalid, tmp_path).param == PARAM


def write_jsonl(path: Path, lines: list[object]) -> None:
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_parquet(path: Path, lines: list[object]) -> None:
    parquet.write_table(arrow.Table.from_pylist(lines), path)


WRITERS: dict[str, Callable[[Path, list[object]], None]] = {
    "rows.jsonl": write_jsonl,
    "rows.jsonl.gz": write_jsonl,
    "rows.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_row_is_a_document(tmp_path: Path, name: str) -> None:
    rows = [{"body": f"text {n}", "other": n} for n in range(200)]
    WRITERS[name](tmp_path / name, [*rows])
    expected = [Document(f"{name}:{n + 1}", f"text {n}") for n in range(200)]
    assert read(tmp_path, "**/*", "body") == expected


@pytest.mark.parametrize("name", WRITERS)
def test_a_missing_field_is_named_with_those_there_are(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, [{"body": "x", "title": "y"}])
    error = refused(DataInvalid, tmp_path)
    assert error.param == f"{PARAM}.text_field"
    assert name in error.detail
    assert "'body', 'title'" in error.detail


@pytest.mark.parametrize("name", WRITERS)
def test_a_field_that_is_not_text_is_refused(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, [{"text": 1}])
    kind = "int64" if name.endswith(".parquet") else "int"
    assert f"is {kind}, not text" in refused(DataInvalid, tmp_path).detail


@pytest.mark.parametrize("name", WRITERS)
def test_nulls_are_left_out_and_rows_keep_their_numbers(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, [{"text": "a"}, {"text": None}, {"text": "c"}])
    assert [document.id for document in read(tmp_path)] == [f"{name}:1", f"{name}:3"]


def test_blank_lines_of_jsonl_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\n{"text": "x"}\n\n')
    assert read(tmp_path) == [Document("a.jsonl:2", "x")]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "x"', "is not JSON"),
        (b'["text"]', "is not a JSON object"),
        (b'{"text": "\xff"}', "is not UTF-8 (byte 0xff at position 10)"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"text": "\\ud800"}', "half a character"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    error = refused(DataInvalid, tmp_path)
    assert "a.jsonl:2" in error.detail
    assert problem in error.detail


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl.gz"])
@pytest.mark.parametrize(
    "content",
    [b"", b"PAR1 nonsense PAR1", gzip.compress(b"{}" * 999)[:-9]],
    ids=["empty", "nonsense", "cut gzip"],
)
def test_a_broken_container_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    error = refused(DataInvalid, tmp_path)
    assert name in error.detail or "no text" in error.detail


def test_a_parquet_column_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    broken = arrow.array([b"caf\xc3"]).view(arrow.string())
    parquet.write_table(arrow.table({"text": broken}), tmp_path / "a.parquet")
    assert "'a.parquet' cannot be read" in refused(DataInvalid, tmp_path).detail


ROWS = b'{"text": "fine"}\n{"text": "also fine"}\n'

SHOWN_AT_SUBMISSION = {
    "empty.txt": (b"", "There is no text in 'empty.txt'."),
    "blank.txt": (b" \n\n", "There is no text in 'blank.txt'."),
    "empty.jsonl": (b"", "There is no text in 'empty.jsonl'."),
    "latin1.txt": ("café".encode("latin-1"), "it is not UTF-8 (byte 0xe9 at position 3)"),
    "utf16.txt": ("text".encode("utf-16"), "it is UTF-16; convert it to UTF-8"),
    "binary.txt": (b"GIF\0", "it is binary: it contains null bytes, first at position 3"),
    "latin1.jsonl": (b'{"text": "caf\xe9"}\n', "'latin1.jsonl:1': it is not UTF-8 (byte 0xe9 at"),
    "utf16.jsonl": (ROWS.decode().encode("utf-16"), "'utf16.jsonl:1': it is not UTF-8"),
    "array.jsonl": (b"[\n" + ROWS, "'array.jsonl:1' is not JSON: "),
    "number.jsonl": (ROWS + b'{"text": 5}\n', "'text' of 'number.jsonl:3' is int, not text."),
    "late.JSONL": (
        ROWS + b'{"body": "x"}\n',
        "'late.JSONL:3' has no field 'text'; it has: 'body'.",
    ),
    "chat.ndjson": (
        b'{"messages": [{"from": "human", "value": "Hello"}]}\n',
        "it has: 'messages'. A chat is a list of objects with 'role' and 'content': rename 'from'",
    ),
    "sharegpt.jsonl": (
        b'{"text": [{"from": "human", "value": "Hello"}]}\n',
        "'text' of 'sharegpt.jsonl:1' is list, not text. A chat is a list of objects with 'role'",
    ),
    "plain.jsonl.gz": (ROWS, "'plain.jsonl.gz' cannot be read: Not a gzipped file"),
    "cut.jsonl.gz": (gzip.compress(ROWS)[:-9], "'cut.jsonl.gz' cannot be read: Compressed file"),
    "a.parquet": (b"PAR1 nonsense PAR1", "'a.parquet' cannot be read: "),
    "array.json": (b'[{"text": "x"}]', "'array.json' cannot be read as text: it is one JSON doc"),
    "table.csv": (b"id,text\n1,x\n", "'table.csv' cannot be read as text: it is a table; write"),
    "TABLE.TSV": (b"id\ttext\n1\tx\n", "'TABLE.TSV' cannot be read as text: it is a table"),
    "a.txt.gz": (gzip.compress(b"x"), "'a.txt.gz' cannot be read as text: it is compressed"),
}


@pytest.mark.parametrize("name", SHOWN_AT_SUBMISSION)
def test_what_the_beginning_shows_is_refused_at_submission_in_the_same_words(
    tmp_path: Path, name: str
) -> None:
    content, said = SHOWN_AT_SUBMISSION[name]
    (tmp_path / name).write_bytes(content)
    at_work = refused(DataInvalid, tmp_path / name)
    with pytest.raises(DataInvalid) as at_submission:
        check_documents(tmp_path / name, EVERYTHING, "text", PARAM)
    assert said in at_work.detail
    assert at_submission.value.detail == at_work.detail
    assert at_submission.value.param == at_work.param


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (arrow.binary(), b"x", "is binary, not text."),
        (arrow.list_(arrow.string()), ["x"], "is list<element: string>, not text."),
        (
            arrow.list_(arrow.struct({"from": arrow.string(), "value": arrow.string()})),
            [{"from": "human", "value": "x"}],
            "not text. A chat is a list of objects with 'role' and 'content'",
        ),
    ],
    ids=["binary", "list", "chat"],
)
def test_a_parquet_column_that_is_not_text_is_refused_at_submission(
    tmp_path: Path, kind: arrow.DataType, value: object, said: str
) -> None:
    table = arrow.table({"text": arrow.array([value], kind)})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataInvalid, match=said) as caught:
        check_documents(tmp_path, EVERYTHING, "text", PARAM)
    assert caught.value.detail == refused(DataInvalid, tmp_path).detail


@pytest.mark.parametrize(
    "kind",
    [arrow.string(), arrow.large_string(), arrow.dictionary(arrow.int32(), arrow.string())],
    ids=str,
)
def test_text_in_parquet_is_read_however_it_is_encoded(
    tmp_path: Path, kind: arrow.DataType
) -> None:
    table = arrow.table({"text": arrow.array(["x", "y", "x"], kind)})
    parquet.write_table(table, tmp_path / "a.PARQUET")
    check_documents(tmp_path, EVERYTHING, "text", PARAM)
    assert [document.text for document in read(tmp_path)] == ["x", "y", "x"]


BEYOND = b"x" * CHECKED_BYTES


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", BEYOND[1:] + "é".encode() + b"\xff"),
        ("a.txt", b" " * CHECKED_BYTES + b"x"),
        ("a.jsonl", b'{"text": "' + BEYOND + b'"}\n'),
        ("a.jsonl", ROWS + b"\n" * CHECKED_BYTES + b"broken"),
        ("a.jsonl.gz", gzip.compress(ROWS + BEYOND)),
        ("a.jsonl.gz", gzip.compress(ROWS + os.urandom(2 * CHECKED_BYTES).hex().encode())),
    ],
    ids=["text", "blank", "long row", "rows", "gzip", "long gzip"],
)
def test_a_check_ends_with_the_beginning(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    check_documents(tmp_path, EVERYTHING, "text", PARAM)


def test_a_check_opens_a_few_files(tmp_path: Path) -> None:
    for number in range(CHECKED_FILES):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(DataInvalid, match="There is no text in the 8 files that"):
        check_documents(tmp_path, EVERYTHING, "text", PARAM)
    (tmp_path / "one more.txt").touch()
    check_documents(tmp_path, EVERYTHING, "text", PARAM)


@pytest.mark.parametrize("name", WRITERS)
def test_the_fields_of_problems_are_checked(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, [{"q": "a"}])
    check_records(tmp_path, "*", {"q": f"{PARAM}.question_field"}, PARAM)
    with pytest.raises(DataInvalid, match=r"'q'\. Name the right one in .*answer_field") as caught:
        check_records(tmp_path, "*", {"a": f"{PARAM}.answer_field"}, PARAM)
    assert caught.value.param == f"{PARAM}.answer_field"


def test_every_message_can_be_sent(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.jsonl").write_text('{"half \\ud800": "x"}\n')
    refused(DataInvalid, tmp_path).detail.encode()


def test_long_names_of_fields_are_cut(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"x" * 100_000: ""}])
    assert len(refused(DataInvalid, tmp_path).detail) < 300


def rendered(chat: Chat, where: str) -> str:
    return f"{where} " + " ".join(f"{each['role']}: {each['content']}" for each in chat.messages)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("text_field", ["messages", "text"])
def test_chats_are_rendered(tmp_path: Path, name: str, text_field: str) -> None:
    hello = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    WRITERS[name](tmp_path / name, [{"messages": hello}, {"messages": []}, {"messages": hello[:1]}])
    check_documents(tmp_path, EVERYTHING, text_field, PARAM)
    skipped = Skipped()
    documents = read_documents(
        tmp_path, EVERYTHING, text_field, PARAM, render=rendered, skipped=skipped
    )
    assert [document.text for document in documents] == [
        f"{name}:1 user: Hello assistant: Hi",
        f"{name}:3 user: Hello",
    ]
    assert skipped == Skipped(empty_rows=1)


def test_a_text_comes_before_a_chat(tmp_path: Path) -> None:
    row = {"text": "x", "messages": [{"role": "user", "content": "Hello"}]}
    write_jsonl(tmp_path / "a.jsonl", [row])
    assert [document.text for document in read(tmp_path)] == ["x"]


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ("Hello", None),
        ({"role": "user", "content": "x"}, "'messages' of 'a.jsonl:1' is dict, not text."),
        (["Hello"], "message 1 of 'messages' in 'a.jsonl:1' is str, not an object with 'role'"),
        ([{"role": "user"}], "'content' of message 1 of 'messages' in 'a.jsonl:1' is missing."),
        ([{"role": "", "content": "x"}], "'role' of message 1 of 'messages' in 'a.jsonl:1' is em"),
        ([{"role": "user", "content": ["x"]}], "is list, not text."),
        ([{"role": "user", "content": "x"}, {"from": "gpt", "value": "y"}], "is missing. A chat"),
        ([{"role": "user", "content": "\ud800"}], "contains half a character"),
    ],
    ids=["text", "object", "texts", "missing", "empty", "parts", "mixed", "half"],
)
def test_malformed_messages(tmp_path: Path, messages: object, said: str | None) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    if said is None:
        assert [document.text for document in read(tmp_path, text_field="messages")] == [messages]
    else:
        error = refused(DataInvalid, tmp_path, EVERYTHING, "messages")
        assert said in error.detail
        assert error.param == f"{PARAM}.text_field"


BINARY = {
    "not-utf8": b"\x89PNG\r\n\x1a\n\xff\xfe",
    "zeros": b"\x00\x01\x02",
    "cut": b"caf\xc3",
}


@pytest.mark.parametrize("name", BINARY)
def test_a_wildcard_skips_what_is_no_text_and_says_so(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).write_bytes(BINARY[name])
    (tmp_path / "text").write_text("x")
    skipped = Skipped()
    documents = read_documents(tmp_path, EVERYTHING, "text", PARAM, skipped=skipped)
    assert [document.id for document in documents] == ["text"]
    assert [*skipped.files] == [name]
    assert "1 of 2 files skipped" in caplog.text


@pytest.mark.parametrize("name", BINARY)
def test_what_is_no_text_is_refused_when_it_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BINARY[name])
    (tmp_path / "text").write_text("x")
    assert f"'{name}' cannot be read as text" in refused(DataInvalid, tmp_path, name).detail
    assert f"'{name}' cannot be read as text" in refused(DataInvalid, tmp_path / name).detail


def test_nothing_but_skipped_files_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(BINARY["not-utf8"])
    (tmp_path / "b.csv").write_text("x")
    detail = refused(DataInvalid, tmp_path).detail
    assert "There is no text in the 2 files that '**/*' selects. 'a.png' was skipped: it" in detail


def test_a_wildcard_skips_data_that_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "dataset_infos.json").write_text("{}")
    (tmp_path / "labels.csv").write_text("x")
    (tmp_path / "text").write_text("x")
    assert [document.id for document in read(tmp_path)] == ["text"]


def test_a_pattern_that_selects_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert refused(DataNotFound, tmp_path, "*.md").param == f"{PARAM}.pattern"


def test_an_absent_root(tmp_path: Path) -> None:
    assert refused(DataNotFound, tmp_path / "absent").param == PARAM


def test_a_link_must_not_lead_out(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    (root / "a.txt").write_text("public")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "within.txt").symlink_to(root / "a.txt")
    assert refused(PathNotAllowed, root, "link.txt").param == PARAM
    assert [document.id for document in read(root)] == ["a.txt", "within.txt"]


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    (tmp_path / "text").write_text("x")
    assert [document.id for document in read(tmp_path)] == ["text"]
    for name in ("pipe", "loop", "dangling"):
        assert name in refused(DataInvalid, tmp_path, name).detail


@pytest.fixture
def small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service.inputs.texts.text_files, "MAX_DOCUMENT_BYTES", 64)
    monkeypatch.setattr(service.inputs.texts.rows, "MAX_DOCUMENT_BYTES", 64)
    monkeypatch.setattr(service.inputs.texts.documents, "MAX_DOCUMENTS", 5)
    monkeypatch.setattr(service.inputs.texts.documents, "MAX_TEXT_BYTES", 100)


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("name", ["big.txt", *WRITERS])
def test_a_document_may_be_too_large(tmp_path: Path, name: str) -> None:
    text = "é" * 33  # 66 bytes, and the bound falls inside a character
    if name in WRITERS:
        WRITERS[name](tmp_path / name, [{"text": text}])
    else:
        (tmp_path / name).write_text(text)
    error = refused(DataInvalid, tmp_path)
    assert name in error.detail
    assert "larger than 64 bytes" in error.detail


@pytest.mark.usefixtures("small_bounds")
def test_a_large_file_that_is_no_text_is_skipped_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "archive").write_bytes(b"\xff" * 1000)
    (tmp_path / "text").write_text("x")
    assert [document.id for document in read(tmp_path)] == ["text"]


@pytest.mark.usefixtures("small_bounds")
def test_there_may_be_too_many_documents(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}] * 6)
    assert "more than 5 documents" in refused(DataInvalid, tmp_path).detail


@pytest.mark.usefixtures("small_bounds")
def test_there_may_be_too_much_text(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl.gz", [{"text": "x" * 40}] * 3)
    detail = refused(DataInvalid, tmp_path).detail
    assert "more than 100 bytes of text" in detail
    assert "Name a pattern that selects fewer files" in detail


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("name", WRITERS)
def test_rows_without_text_count(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, [{"text": None}] * 6)
    assert "more than 5 documents" in refused(DataInvalid, tmp_path).detail


@pytest.mark.parametrize("line", [b"\n", b'{"text": "x"}\n'])
def test_gzip_may_expand_only_so_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    monkeypatch.setattr(service.inputs.texts.text_files, "MIN_EXPANDED_BYTES", 1000)
    monkeypatch.setattr(service.inputs.texts.text_files, "MAX_EXPANSION", 2)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line * 2000))
    assert (
        "'a.jsonl.gz' cannot be read: it expands to more" in refused(DataInvalid, tmp_path).detail
    )


def read_rows(file: Path) -> list[Record]:
    return list(read_records(file, "*", {"q": f"{PARAM}.question_field"}, PARAM))


@pytest.mark.parametrize("name", WRITERS)
def test_a_record_has_the_fields_that_were_asked_for(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, [{"q": ["a", 1][:1], "other": "x" * 99}, {"q": ["b"]}])
    assert read_rows(tmp_path / name) == [
        Record(f"{name}:1", {"q": ["a"]}),
        Record(f"{name}:2", {"q": ["b"]}),
    ]


@pytest.mark.usefixtures("small_bounds")
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"q": "x" * 64}], "larger than 64 bytes"),
        ([{"q": ["é"] * 32}], "larger than 64 bytes"),
        ([{"q": [[]] * 20}], "larger than 64 bytes"),
        ([{"q": "x" * 40}] * 3, "more than 100 bytes of text"),
        ([{"q": 1}] * 6, "more than 5 documents"),
    ],
    ids=["long text", "long list", "empty lists", "much text", "many rows"],
)
def test_records_are_bounded(tmp_path: Path, name: str, rows: list[object], said: str) -> None:
    WRITERS[name](tmp_path / name, rows)
    with pytest.raises(DataInvalid, match=said) as caught:
        read_rows(tmp_path / name)
    assert caught.value.param == PARAM


@pytest.mark.usefixtures("small_bounds")
def test_what_is_not_asked_for_does_not_count(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"q": "x" * 10, "o": "y" * 30}] * 4)
    assert len(read_rows(tmp_path / "a.jsonl")) == 4


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ('"\\ud800"', "'a.jsonl:1' contains half a character"),
        ('{"\\udfff": 1}', "'a.jsonl:1' contains half a character"),
        ("[" * 100_000 + "]" * 100_000, "'a.jsonl:1' is"),
    ],
    ids=["text", "key", "depth"],
)
def test_a_record_that_is_no_text_is_refused(tmp_path: Path, value: str, said: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"q": {value}}}\n')
    with pytest.raises(DataInvalid, match=said):
        read_rows(tmp_path / "a.jsonl")


def test_reading_is_lazy(tmp_path: Path) -> None:
    """A consumer that has enough never meets what is wrong further on."""
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\nbroken\n')
    assert next(read_documents(tmp_path, "*", "text", PARAM)).text == "x"

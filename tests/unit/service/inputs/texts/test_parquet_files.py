"""Small Parquet files that expand to gigabytes are refused within bounds of memory and time."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as arrow
import pytest
from pyarrow import parquet

from service.inputs.texts import parquet_files
from service.inputs.texts.parquet_files import ParquetReader, ParquetUnreadable, copy_footer

MIB = 2**20
MAX_PEAK_KIB = 400 * 1024
"""Of each process that takes part in reading a bomb."""

READ = """
import resource, sys
from pathlib import Path
from service.errors import DataInvalid
from service.inputs.texts.documents import read_documents
try:
    for _ in read_documents(Path(sys.argv[1]), "*", "text", "data"):
        pass
except DataInvalid as error:
    print(error.detail)
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def bomb(path: Path, text_bytes: int, rows: int) -> None:
    """The same text in every row, which the file holds once."""
    indices = arrow.array([0] * rows, arrow.int32())
    text = arrow.array(["x" * text_bytes])
    table = arrow.table({"text": arrow.DictionaryArray.from_arrays(indices, text)})
    parquet.write_table(table, path, compression="zstd", write_statistics=False)


def read(file: Path, max_bytes: int = 2**40) -> list[object]:
    with ParquetReader() as reader:
        return list(reader.open(file, ["text"], max_bytes)[1])


@pytest.mark.parametrize(
    ("text_bytes", "rows", "said"),
    [
        (64 * MIB, 90, "too much memory"),
        (60_000, 100_000, "it expands to more than 67108864 bytes of text; write it as .jsonl"),
    ],
    ids=["long texts", "many texts"],
)
def test_a_bomb_is_refused_in_little_memory(
    tmp_path: Path, text_bytes: int, rows: int, said: str
) -> None:
    bomb(tmp_path / "bomb.parquet", text_bytes, rows)
    assert (tmp_path / "bomb.parquet").stat().st_size < 16_000
    command = [sys.executable, "-c", READ, str(tmp_path / "bomb.parquet")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    refusal, *peaks = printed.splitlines()
    assert refusal.startswith("'bomb.parquet' cannot be read: it")
    assert said in refusal
    assert max(map(int, peaks)) < MAX_PEAK_KIB


def test_a_row_of_nulls_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "MAX_ROW_BYTES", 1000)
    nulls = arrow.ListArray.from_arrays([0, 1000], arrow.nulls(1000, arrow.int8()))
    parquet.write_table(arrow.table({"text": nulls}), tmp_path / "a.parquet")
    with pytest.raises(ParquetUnreadable, match="rows of more than 1000 bytes"):
        read(tmp_path / "a.parquet")


def test_a_long_list_of_nulls_is_bounded(tmp_path: Path) -> None:
    count = 40 * MIB
    nulls = arrow.ListArray.from_arrays([0, count], arrow.nulls(count, arrow.int8()))
    parquet.write_table(arrow.table({"text": nulls}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 16_000
    with pytest.raises(ParquetUnreadable, match="too much memory"):
        read(tmp_path / "a.parquet")


def test_processor_time_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_files, "CPU_SECONDS", 0)
    parquet.write_table(arrow.table({"text": arrow.nulls(20_000_000)}), tmp_path / "a.parquet")
    with pytest.raises(ParquetUnreadable, match="it takes too long"):
        read(tmp_path / "a.parquet")


def test_a_large_footer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parquet.write_table(arrow.table({"text": ["x"]}), tmp_path / "a.parquet")
    monkeypatch.setattr(parquet_files, "MAX_FOOTER_BYTES", 100)
    with pytest.raises(ParquetUnreadable, match="its footer has more than 100 bytes"):
        read(tmp_path / "a.parquet")


def test_large_and_small_rows_come_in_order(tmp_path: Path) -> None:
    texts = ["a" * 24 * MIB, "small", None, "b" * 24 * MIB, *map(str, range(5000))]
    parquet.write_table(arrow.table({"text": texts}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [{"text": text} for text in texts]


def test_one_process_reads_many_files(tmp_path: Path) -> None:
    for name in "ab":
        parquet.write_table(arrow.table({"text": [name]}), tmp_path / name)
    with ParquetReader() as reader:
        texts: list[object] = []
        for name in "ab":
            texts += reader.open(tmp_path / name, ["text"], MIB)[1]
            process = reader._process
        assert reader._process is process
    assert texts == [{"text": "a"}, {"text": "b"}]
    assert process is not None
    assert process.returncode == -signal.SIGKILL


def test_a_process_that_dies_is_replaced(tmp_path: Path) -> None:
    parquet.write_table(arrow.table({"text": ["x"]}), tmp_path / "a.parquet")
    with ParquetReader() as reader:
        list(reader.open(tmp_path / "a.parquet", ["text"], MIB)[1])
        assert reader._process is not None
        os.kill(reader._process.pid, signal.SIGSEGV)
        reader._process.wait()
        with pytest.raises(ParquetUnreadable, match="ended with signal 11: it is damaged"):
            reader.open(tmp_path / "a.parquet", None, MIB)
        assert reader.open(tmp_path / "a.parquet", None, MIB)[0].rows == 1


def test_a_value_that_json_cannot_hold_is_no_text(tmp_path: Path) -> None:
    parquet.write_table(arrow.table({"text": [b"x"]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet") == [{"text": {"bytes": "b'x'"}}]


@pytest.mark.parametrize("columns", [1, 3000])
def test_a_copy_of_the_footer_says_the_same(tmp_path: Path, columns: int) -> None:
    original = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({f"c{n}": ["x" * 1000] for n in range(columns)}), original)
    data = original.read_bytes()
    copy = tmp_path / "copy"
    with copy.open("wb") as stream:
        stream.truncate(len(data))
        copy_footer(len(data), lambda start, length: data[start : start + length], stream)
    with ParquetReader() as reader:
        assert reader.open(copy, None, MIB)[0] == reader.open(original, None, MIB)[0]


def test_a_copy_of_what_has_no_footer() -> None:
    stream = io.BytesIO(bytes(3))
    copy_footer(3, lambda *_: b"", stream)
    assert stream.getvalue() == bytes(3)

"""Parquet files, read by a process with bounds: `service.inputs.texts.parquet_program`."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self, cast

PROGRAM = Path(__file__).with_name("parquet_program.py")
MIN_MEMORY_BYTES = 384 * 2**20
MAX_MEMORY_BYTES = 2 * 2**30
MEMORY_PER_BYTE = 1024
"""The memory of the process is in proportion to the file's size, between these bounds."""
CPU_SECONDS = 60
BYTES_PER_CPU_SECOND = 2**20
"""The processor time of one file: this much, and more in proportion to its size."""
MAX_ROW_BYTES = 128 * 2**20
"""Of a row as JSON, which takes up to twice as much as its text."""
MAX_FOOTER_BYTES = 16 * 2**20
"""In memory a footer takes many times as much."""
FOOTER_BYTES = 2**16
"""Most footers are smaller."""

TAIL = struct.Struct("<I4s")
"""The end of a file: the length of the footer before it, and the letters PAR1."""


class ParquetUnreadable(Exception):
    """The file cannot be read; the message says why."""


@dataclass(frozen=True)
class Column:
    """The type of a column, in Arrow's words."""

    type: str
    is_text: bool
    item_fields: Sequence[str]
    """The fields of its values, if they are objects or lists of objects."""


@dataclass(frozen=True)
class Footer:
    """What the footer of a file says."""

    rows: int
    columns: Mapping[str, Column]


class ParquetReader:
    """Reads one file after another. Close it, or use `with`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it does."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            process.communicate()

    def open(
        self, file: Path, columns: Sequence[str] | None, max_bytes: int
    ) -> tuple[Footer, Iterator[dict[str, Any]]]:
        """What the footer says, and the rows with these columns, at most `max_bytes` of them.

        There are no rows without `columns`, or if one is missing. Opening and iterating raise
        ParquetUnreadable, also for what takes more memory or processor time than a file of this
        size may take. Open no other file before the rows are read to their end.
        """
        answers = self._answers(file, columns, max_bytes)
        said = next(answers)
        columns_there = {name: Column(**column) for name, column in said["columns"].items()}
        return Footer(said["rows"], columns_there), (
            dict(zip(columns or (), row, strict=True)) for rows in answers for row in rows
        )

    def _answers(self, file: Path, columns: Sequence[str] | None, max_bytes: int) -> Iterator[Any]:
        try:
            yield from self._ask(file, columns, max_bytes)
        except BaseException:
            self.close()  # the rest of its answer is never read
            raise

    def _ask(self, file: Path, columns: Sequence[str] | None, max_bytes: int) -> Iterator[Any]:
        self._process = self._process or _start()
        size, total = file.stat().st_size, 0
        request = {
            "path": str(file),
            "columns": columns,
            "footer_bytes": MAX_FOOTER_BYTES,
            "memory_bytes": _between(MIN_MEMORY_BYTES, size * MEMORY_PER_BYTE, MAX_MEMORY_BYTES),
            "cpu_seconds": CPU_SECONDS + size // BYTES_PER_CPU_SECOND,
        }
        _write(self._process, request)
        while (line := _read_line(self._process)) != b"\n":
            total += len(line)
            if total > max_bytes:
                raise ParquetUnreadable(
                    f"it expands to more than {max_bytes} bytes of text; write it as .jsonl"
                )
            answer = json.loads(line)
            if isinstance(answer, dict) and "error" in answer:
                raise ParquetUnreadable(answer["error"])
            yield answer


def copy_footer(size: int, read: Callable[[int, int], bytes], copy: IO[bytes]) -> None:
    """Copy the footer of a file of `size` bytes to the same position of `copy`.

    `read` takes the position and the number of the bytes to read.
    """
    wanted = min(size, FOOTER_BYTES)
    if wanted < TAIL.size:
        return
    tail = read(size - wanted, wanted)
    length = TAIL.unpack(tail[-TAIL.size :])[0] + TAIL.size
    if wanted < length <= min(size, MAX_FOOTER_BYTES):
        tail = read(size - length, length)
    copy.seek(-len(tail), os.SEEK_END)
    copy.write(tail)


def _start() -> subprocess.Popen[bytes]:
    bounded = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}
    return subprocess.Popen(
        # -P: modules beside the program have names of the standard library's.
        [sys.executable, "-P", str(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | bounded,
        start_new_session=True,  # an interrupt at the terminal is for the caller
    )


def _between(lowest: int, wanted: int, highest: int) -> int:
    return max(lowest, min(wanted, highest))


def _write(process: subprocess.Popen[bytes], request: Mapping[str, Any]) -> None:
    requests = cast(IO[bytes], process.stdin)
    with suppress(BrokenPipeError):  # the end of its answers says why
        requests.write(json.dumps(request).encode() + b"\n")
        requests.flush()


def _read_line(process: subprocess.Popen[bytes]) -> bytes:
    line = cast(IO[bytes], process.stdout).readline(MAX_ROW_BYTES)
    if line.endswith(b"\n"):
        return line
    if len(line) == MAX_ROW_BYTES:
        raise ParquetUnreadable(f"it has rows of more than {MAX_ROW_BYTES} bytes as JSON")
    raise _death(process.wait())


def _death(status: int) -> Exception:
    """Why the process ended before its answer did."""
    if status == -signal.SIGXCPU:
        return ParquetUnreadable("it takes too long for a file of its size")
    if status < 0:  # Arrow aborts where it cannot report that there is no memory
        return ParquetUnreadable(
            f"its reader ended with signal {-status}: it is damaged, or takes too much memory for "
            "a file of its size; write it in smaller row groups"
        )
    return RuntimeError(f"{PROGRAM.name} ended with status {status}")

"""Reads Parquet files in a process of its own, with bounds on memory and processor time.

A small Parquet file can expand to any size: pages, dictionaries and nested lists are allocated as
the file declares them. `service.inputs.texts.parquet_files` starts this program. Each line of
standard input is a request: a path, the columns to read (null: none) and the bounds. The answer is
a line that describes the file, lines with arrays of rows (each an array of the columns' values) and
an empty line. A line `{"error": ...}` takes the place of what cannot be read.
"""

from __future__ import annotations

import json
import resource
import struct
import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet

MAX_BATCH_ROWS = 1024
BATCH_BYTES = 4 * 2**20
"""About how much of a file is in memory at once, if its rows are as large as its footer says."""
TAIL = struct.Struct("<I4s")
FAILURES = (
    ArithmeticError,
    LookupError,
    OSError,
    RecursionError,
    ValueError,
    arrow.ArrowException,
)
"""What reading a damaged file raises."""
LISTS = (arrow.ListType, arrow.LargeListType)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    out = sys.stdout.buffer
    for line in sys.stdin.buffer:
        for answer in _answers(json.loads(line)):
            out.write(answer)
        out.write(b"\n")
        out.flush()


def _answers(request: dict[str, Any]) -> Iterator[bytes]:
    _limit(resource.RLIMIT_DATA, request["memory_bytes"])
    used = resource.getrusage(resource.RUSAGE_SELF)
    _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + request["cpu_seconds"])
    try:
        _check_footer(request["path"], request["footer_bytes"])
        yield from map(_line, _read(request["path"], request["columns"]))
    except MemoryError:
        bound = f"{request['memory_bytes']} bytes"
        advice = "write it in smaller row groups"
        yield _line({"error": f"it takes too much memory, more than {bound}; {advice}"})
    except FAILURES as error:
        yield json.dumps({"error": str(error)}).encode() + b"\n"  # may hold half a character


def _line(answer: object) -> bytes:
    return json.dumps(answer, ensure_ascii=False, default=_opaque).encode() + b"\n"


def _opaque(value: object) -> dict[str, str]:
    """What JSON cannot hold, as something that is never mistaken for text."""
    return {type(value).__name__: str(value)}


def _limit(kind: int, bound: int) -> None:
    _, highest = resource.getrlimit(kind)
    lower = bound if highest == resource.RLIM_INFINITY else min(bound, highest)
    resource.setrlimit(kind, (lower, highest))


def _read(path: str, columns: list[str] | None) -> Iterator[Any]:
    with parquet.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as table:
        yield {
            "rows": table.metadata.num_rows,
            "columns": {field.name: describe(field.type) for field in table.schema_arrow},
        }
        if columns is not None and set(columns) <= set(table.schema_arrow.names):
            count = _batch_rows(table.metadata)
            for batch in table.iter_batches(count, columns=columns, use_threads=False):
                yield from _rows([_expanded(batch.column(name)) for name in columns])


def _batch_rows(footer: parquet.FileMetaData) -> int:
    total = sum(footer.row_group(n).total_byte_size for n in range(footer.num_row_groups))
    rows: int = BATCH_BYTES * footer.num_rows // max(1, total)
    return max(1, min(rows, MAX_BATCH_ROWS))


def _expanded(column: arrow.Array) -> arrow.Array:
    return column.dictionary_decode() if isinstance(column, arrow.DictionaryArray) else column


def _rows(columns: list[arrow.Array]) -> Iterator[list[tuple[Any, ...]]]:
    """The rows of a batch: together if they are small, which is faster, else one by one."""
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    if sum(column.nbytes for column in columns) <= 2 * BATCH_BYTES:
        yield list(rows)
    else:
        yield from ([row] for row in rows)


def _check_footer(path: str, bound: int) -> None:
    with open(path, "rb") as file:  # noqa: PTH123 - no needless imports
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL.size))
        tail = file.read()
    footer = TAIL.unpack(tail)[0] if tail.endswith(b"PAR1") and len(tail) == TAIL.size else 0
    if footer > bound:
        raise ValueError(f"its footer has more than {bound} bytes")


def describe(kind: arrow.DataType) -> dict[str, Any]:
    """A `service.inputs.texts.parquet_files.Column`."""
    item = kind.value_type if isinstance(kind, LISTS) else kind
    return {
        "type": str(kind),
        "is_text": is_text(kind),
        "item_fields": [field.name for field in item] if isinstance(item, arrow.StructType) else [],
    }


def is_text(kind: arrow.DataType) -> bool:
    if arrow.types.is_dictionary(kind):
        return is_text(kind.value_type)
    is_string = (arrow.types.is_string, arrow.types.is_large_string, arrow.types.is_string_view)
    return arrow.types.is_null(kind) or any(check(kind) for check in is_string)


if __name__ == "__main__":
    main()

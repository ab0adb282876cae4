"""Reads the metadata of a GGUF file without the library, tensors, or unbounded work.

The format is specified at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A submission
must learn within milliseconds whether a file can be a whole model; the gguf library maps and parses
everything first.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import IO, Any

from service.errors import ModelInvalid
from service.printable import shortened

VERSIONS = (2, 3)
MAX_TENSORS = 1_000_000
MAX_DESCRIBED_TENSORS = 20_000
"""A submission reads the shapes of no more; real files have some hundred."""
MAX_DIMENSIONS = 8
MAX_KEYS = 10_000
MAX_ITEMS = 2_000_000
"""The limit of all arrays together; the largest vocabularies have 262,144 tokens."""
MAX_METADATA_BYTES = 2**28
MAX_STRING_BYTES = 2**24
"""The limit of one string; chat templates are the longest."""

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9

Value = bool | int | float | str


@dataclass(frozen=True)
class GGUFHeader:
    """The number of tensors and the metadata, without arrays."""

    tensors: int
    metadata: Mapping[str, Value]
    shapes: Mapping[str, Sequence[int]] | None = None  # of all tensors, where they can be read


def check_gguf(file: IO[bytes], name: str, param: str) -> GGUFHeader:
    """The header of a file, with the tensors' shapes if it describes them.

    Raises `ModelInvalid` unless its metadata describe a whole language model.
    """
    header = read_gguf_header(file, name, param)
    count, number = header.metadata.get("split.count", 1), header.metadata.get("split.no", 0)
    if isinstance(count, int) and isinstance(number, int) and count > 1:
        raise ModelInvalid(
            f"'{name}' is part {number + 1} of a model split into {count} files. Merge them "
            "(`llama-gguf-split --merge FIRST WHOLE`) and name the whole file.",
            param=param,
        )
    architecture = header.metadata.get("general.architecture")
    wanted: dict[str, type] = {"general.architecture": str}
    if isinstance(architecture, str):
        wanted |= {f"{architecture}.{key}": int for key in ("block_count", "embedding_length")}
    for key, kind in wanted.items():
        value = header.metadata.get(key)
        if type(value) is not kind or not value:
            raise ModelInvalid(
                f"'{name}' has no '{key}': it is not a whole language model.", param=param
            )
    blocks = header.metadata[f"{architecture}.block_count"]
    if isinstance(blocks, int) and not 0 < blocks <= header.tensors:
        raise ModelInvalid(
            f"'{name}' has {header.tensors} tensors, but '{architecture}.block_count' is {blocks}: "
            "a block has several tensors.",
            param=param,
        )
    if header.tensors <= MAX_DESCRIBED_TENSORS:
        with suppress(EOFError, ValueError):  # a worker, which reads all of it, says what is wrong
            return replace(header, shapes=dict(_Reader(file).shapes(header.tensors)))
    return header


def read_gguf_header(file: IO[bytes], name: str, param: str) -> GGUFHeader:
    """The header of a GGUF file. Raises `ModelInvalid` if it is no header, or beyond the limits."""
    start = file.read(24)
    if len(start) < 24 or start[:4] != b"GGUF":
        raise ModelInvalid(f"'{name}' is not a GGUF file.", param=param)
    version, tensors, keys = struct.unpack("<IQQ", start[4:])
    if version not in VERSIONS:
        raise ModelInvalid(f"'{name}' has the GGUF version {version}, not 2 or 3.", param=param)
    if not 0 < tensors <= MAX_TENSORS or not 0 < keys <= MAX_KEYS:
        raise ModelInvalid(f"'{name}' claims {tensors} tensors, {keys} keys.", param=param)
    with _undamaged(name, param):
        return GGUFHeader(tensors, _Reader(file).metadata(keys))


def count_numbers(file: IO[bytes], name: str, param: str) -> int:
    """How many numbers the tensors of a GGUF file have together. Raises as `read_gguf_header`."""
    tensors = read_gguf_header(file, name, param).tensors  # the tensors' descriptions follow it
    with _undamaged(name, param):
        return sum(math.prod(shape) for _, shape in _Reader(file).shapes(tensors))


@contextmanager
def _undamaged(name: str, param: str) -> Iterator[None]:
    try:
        yield
    except (EOFError, ValueError) as error:
        raise ModelInvalid(f"The header of '{name}' is damaged: {error}", param=param) from error


class _Reader:
    """Reads a file's key-value pairs and tensors; raises EOFError or ValueError."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._items = self._size = 0

    def metadata(self, keys: int) -> dict[str, Value]:
        found = {}
        for _ in range(keys):
            key = self._string()
            (kind,) = self._unpack("I")
            if kind == _ARRAY:
                self._skip_array()
            else:
                found[key] = self._value(kind)
        return found

    def shapes(self, tensors: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The name and the shape of each tensor, as GGUF has it: the innermost side first."""
        for _ in range(tensors):
            name = self._string()
            (dimensions,) = self._unpack("I")
            if dimensions > MAX_DIMENSIONS:
                raise ValueError(f"a tensor claims {dimensions} dimensions")
            yield name, self._unpack(f"{dimensions}Q")
            self._unpack("IQ")  # its type and its place

    def _value(self, kind: int) -> Value:
        if kind == _STRING:
            return self._string()
        value: Value
        (value,) = self._unpack(self._format(kind))
        return value

    def _skip_array(self) -> None:
        kind, length = self._unpack("IQ")
        self._items += length
        if self._items > MAX_ITEMS:
            raise ValueError(f"its arrays have more than {MAX_ITEMS} items")
        if kind == _STRING:
            for _ in range(length):
                self._string()
        else:
            self._take(length * struct.calcsize(self._format(kind)))

    def _format(self, kind: int) -> str:
        try:
            return _SCALARS[kind]
        except KeyError:
            raise ValueError(f"the value type {kind} is unknown") from None

    def _string(self) -> str:
        data = self._bytes()
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise ValueError(f"the string {shortened(repr(data))} is not UTF-8") from error

    def _bytes(self) -> bytes:
        (length,) = self._unpack("Q")
        if length > MAX_STRING_BYTES:
            raise ValueError(f"a string claims {length} bytes")
        return self._take(length)

    def _unpack(self, format_: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{format_}", self._take(struct.calcsize(f"<{format_}")))

    def _take(self, size: int) -> bytes:
        self._size += size
        if self._size > MAX_METADATA_BYTES:
            raise ValueError(f"it is larger than {MAX_METADATA_BYTES} bytes")
        data = self._file.read(size)
        if len(data) < size:
            raise EOFError("the file ends early")
        return data

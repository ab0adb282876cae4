"""A GGUF file that cannot be a whole language model is refused by its header."""

from __future__ import annotations

import io
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from hypothesis import given
from hypothesis import strategies as st

from bench import demo_data
from service.errors import ModelInvalid
from service.inputs.models import gguf_header
from service.inputs.models.gguf_header import (
    MAX_ITEMS,
    GGUFHeader,
    check_gguf,
    count_numbers,
    read_gguf_header,
)
from tests.fixtures.gguf_files import ARRAY, STRING, WHOLE, header, string, write_llama

PARAM = "model.path"


def check(folder: Path, content: bytes) -> None:
    path = folder / "model.gguf"
    path.write_bytes(content)
    with path.open("rb") as file:
        check_gguf(file, path.name, PARAM)


def header_of(path: Path) -> GGUFHeader:
    with path.open("rb") as file:
        return read_gguf_header(file, path.name, PARAM)


@pytest.mark.parametrize("version", [2, 3])
def test_a_whole_model_passes(tmp_path: Path, version: int) -> None:
    check(tmp_path, header({**WHOLE, "tokens": ["a", "b"], "split.count": 1}, version=version))


def test_the_header_of_real_files_are_read(tmp_path: Path) -> None:
    written = header_of(write_llama(tmp_path / "model.gguf"))
    assert written.tensors == 12
    assert written.metadata["llama.block_count"] == 1
    assert written.metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    real = header_of(demo_data.model_file())
    assert real.metadata["general.architecture"] == "llama"
    assert real.metadata["llama.block_count"] == 30
    assert real.tensors == 272


@pytest.mark.parametrize(("number", "part"), [(0, 1), (1, 2)])
def test_a_part_of_a_split_model_is_refused_with_what_to_do(
    tmp_path: Path, number: int, part: int
) -> None:
    split = {"split.no": number, "split.count": 2}
    with pytest.raises(ModelInvalid, match=rf"part {part} of .* 2 files.* --merge") as caught:
        check(tmp_path, header(split if number else {**WHOLE, **split}))
    assert caught.value.param == PARAM


@pytest.mark.parametrize("missing", WHOLE)
def test_a_file_without_a_model_is_refused_by_what_it_lacks(tmp_path: Path, missing: str) -> None:
    with pytest.raises(ModelInvalid, match=f"has no '{missing}'"):
        check(tmp_path, header({key: value for key, value in WHOLE.items() if key != missing}))


def array(kind: int, length: int) -> bytes:
    return header({}, keys=1) + string("x") + struct.pack("<IIQ", ARRAY, kind, length)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not a GGUF file"),
        (header({})[:-1], "is not a GGUF file"),
        (header(magic=b"GGML"), "is not a GGUF file"),
        (header(version=1), "version 1"),
        (header(version=2**31), "version"),
        (header(tensors=0), "claims 0 tensors"),
        (header(tensors=2**63), "claims"),
        (header(keys=2**63), "claims"),
        (header()[:-1], "ends early"),
        (header(keys=4), "ends early"),
        (array(STRING, MAX_ITEMS + 1), f"more than {MAX_ITEMS} items"),
        (array(4, 2**62), f"more than {MAX_ITEMS} items"),
        (array(99, 1), "type 99 is unknown"),
        (header({}, keys=1) + struct.pack("<Q", 2**40), "a string claims"),
        (header({}, keys=1) + struct.pack("<Q", 2) + b"\xff\xfe", "the string .* is not UTF-8"),
        (array(STRING, 1) + struct.pack("<Q", 2) + b"\xff\xfe", "the string .* is not UTF-8"),
        (header({**WHOLE, "general.architecture": 7}), "has no 'general.architecture'"),
        (header({**WHOLE, "llama.block_count": 6}), "has 5 tensors, but 'llama.block_count' is 6"),
        (header({**WHOLE, "llama.block_count": "2"}), "has no 'llama.block_count'"),
    ],
)
def test_a_bad_header_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(ModelInvalid, match=problem) as caught:
        check(tmp_path, content)
    assert caught.value.param == PARAM


def test_metadata_are_read_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_header, "MAX_METADATA_BYTES", 1000)
    check(tmp_path, header({**WHOLE, "tokens": ["word"] * 40}))
    with pytest.raises(ModelInvalid, match="larger than 1000 bytes"):
        check(tmp_path, header({**WHOLE, "tokens": ["word"] * 80}))


@given(content=st.binary(max_size=80), data=st.data())
def test_any_header_passes_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, data: Any
) -> None:
    whole = header({**WHOLE, "tokens": ["a", "b"]})
    at = data.draw(st.integers(0, len(whole)))
    with suppress(ModelInvalid):
        check(tmp_path_factory.getbasetemp(), whole[:at] + content + whole[at + len(content) :])


def test_the_numbers_of_all_tensors_are_counted(tmp_path: Path) -> None:
    gguf = write_llama(tmp_path / "model.gguf")
    expected = sum(int(tensor.n_elements) for tensor in GGUFReader(gguf).tensors)
    with gguf.open("rb") as file:
        assert count_numbers(file, gguf.name, PARAM) == expected > 0


def test_tensors_with_too_many_dimensions_are_refused() -> None:
    flood = header(tensors=1) + string("w") + struct.pack("<I", 9)
    with pytest.raises(ModelInvalid, match="a tensor claims 9 dimensions"):
        count_numbers(io.BytesIO(flood), "model.gguf", PARAM)

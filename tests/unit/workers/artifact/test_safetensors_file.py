"""Files that are written from a stream are those that the library writes from memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from workers.artifact.safetensors_file import write_safetensors

NARROW_AND_WIDE = {
    "a narrow matrix of odd length": torch.randn(3, 5).bfloat16(),
    "a wide vector": torch.arange(5, dtype=torch.int32),
    "the \"widest\" number, 'ö'": torch.tensor(2**40),
    "no numbers": torch.empty(0, 4, dtype=torch.bfloat16),
    "a mask": torch.tensor([True, False, True]),
}


def test_the_file_is_what_the_library_writes(tmp_path: Path) -> None:
    save_file(NARROW_AND_WIDE, tmp_path / "expected", metadata={"format": "pt"})
    stored = write_safetensors(tmp_path / "streamed", iter(NARROW_AND_WIDE.items()))
    assert (tmp_path / "streamed").read_bytes() == (tmp_path / "expected").read_bytes()
    assert {each.name: each.nbytes for each in stored} == {
        name: tensor.nbytes for name, tensor in NARROW_AND_WIDE.items()
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "streamed"]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.int64, torch.uint8]
)
def test_every_type_and_layout_is_read_back(tmp_path: Path, dtype: torch.dtype) -> None:
    matrix = torch.arange(35).reshape(5, 7).to(dtype)
    tensors = {"transposed": matrix.T, "a row": matrix[2], "a column": matrix[:, 1]}
    write_safetensors(tmp_path / "file", iter(tensors.items()))
    read = load_file(tmp_path / "file")
    assert read.keys() == tensors.keys()
    assert all(same(read[name], tensor) for name, tensor in tensors.items())


def same(one: Tensor, other: Tensor) -> bool:
    return one.dtype is other.dtype and torch.equal(one, other)

"""Full disks, for which /dev/full stands in."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from service.disk_full import naming_full_disk
from service.errors import DiskFull
from service.inputs.cache import cached
from service.settings import Settings

FULL = Path("/dev/full")


def test_a_full_disk_is_named_with_what_to_do(tmp_path: Path) -> None:
    message = f"under {tmp_path} on .*EIGENPRESS_DATA_DIR"
    with pytest.raises(DiskFull, match=message) as caught, naming_full_disk(tmp_path):
        FULL.write_text("text")
    assert caught.value.failure().retryable


def test_what_libraries_make_of_a_full_disk_is_one_too(tmp_path: Path) -> None:
    """As safetensors says it."""
    words = f"Error while serializing: I/O error: {os.strerror(errno.ENOSPC)} (os error 28)"
    with pytest.raises(DiskFull), naming_full_disk(tmp_path):
        raise RuntimeError(words)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_an_exhausted_quota_is_a_full_disk(tmp_path: Path, code: int) -> None:
    with pytest.raises(DiskFull, match=os.strerror(code)), naming_full_disk(tmp_path):
        raise OSError(code, os.strerror(code))


def test_the_innermost_name_stays(tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    named = pytest.raises(DiskFull, match=str(inner))
    with named, naming_full_disk(tmp_path), naming_full_disk(inner):
        FULL.write_text("text")


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    for error in (OSError(errno.EACCES, "No space left on device, a file's name"), ValueError("x")):
        with pytest.raises(type(error)) as caught, naming_full_disk(tmp_path):
            raise error
        assert caught.value is error


def test_nothing_is_fetched_in_part_to_a_full_disk(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "begun").write_text("x")
        FULL.write_text("text")

    with pytest.raises(DiskFull):
        cached(Settings(data_dir=tmp_path), "models", "it", fill)
    assert {path.suffix for path in tmp_path.glob("cache/models/*")} <= {".lock"}

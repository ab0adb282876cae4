"""Files are opened without following a link, and what is held open stays what it was."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from service.errors import ModelInvalid
from service.inputs.opening import HeldFiles, open_file, scan_folder

SECRET = "the secret of somebody else"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A folder outside, with a file of the same name as the one that is opened."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "a.txt").write_text(SECRET)
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file two folders below the root."""
    folder = tmp_path / "root" / "models" / "small"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("open to all")
    return folder / "a.txt"


def open_descriptors() -> int:
    return len(list(Path("/dev/fd").iterdir()))


def test_a_file_is_opened_and_a_folder_is_listed(file: Path) -> None:
    with open_file(file) as opened:
        assert opened.read() == b"open to all"
    with scan_folder(file.parent) as entries:
        assert [entry.name for entry in entries] == ["a.txt"]
    with scan_folder(Path("/")) as entries:
        assert [entry for entry in entries if entry.name == "tmp"]


def replace(path: Path, target: Path) -> None:
    """Put a link where a file or a folder was."""
    path.rename(path.with_name("moved away"))
    path.symlink_to(target)


def test_no_part_of_a_path_may_be_a_link(file: Path, secret: Path) -> None:
    before = open_descriptors()
    replace(file, secret / "a.txt")
    with pytest.raises(OSError, match=r"small/a\.txt"):
        open_file(file)
    replace(file.parent, secret)
    with pytest.raises(OSError, match=r"small/a\.txt"):
        open_file(file)
    with pytest.raises(OSError, match="small"), scan_folder(file.parent):
        pass
    replace(file.parents[1], secret.parent)
    with pytest.raises(OSError, match=r"small/a\.txt"):
        open_file(file)
    assert open_descriptors() == before


@pytest.mark.timeout(20)
def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    before = open_descriptors()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(OSError, match="not a regular file"):
            open_file(path)
    assert open_descriptors() == before


def test_what_is_held_is_read_whatever_becomes_of_the_names(
    file: Path, secret: Path, tmp_path: Path
) -> None:
    held = HeldFiles(tmp_path / "scratch")
    held.open(file, file).close()
    replace(file, secret / "a.txt")
    assert held.view(file).read_text() == "open to all"
    replace(file.parent, secret)
    assert held.view(file).read_text() == "open to all"
    shutil.rmtree(tmp_path / "root")
    with held.open(file, file) as opened:  # it is not opened again
        assert opened.read() == b"open to all"


def test_the_links_are_private_and_vanish_with_the_folder_around_them(
    file: Path, tmp_path: Path
) -> None:
    before = open_descriptors()
    held = HeldFiles(tmp_path / "scratch" / "job-1-1")
    assert not (tmp_path / "scratch").exists()
    held.open(file, file).close()
    assert stat.S_IMODE(held.root.stat().st_mode) == 0o700
    assert held.view(file).parent == held.view(file.parent)
    shutil.rmtree(tmp_path / "scratch")
    assert file.read_text() == "open to all"
    held.close()
    assert open_descriptors() == before


def test_without_proc_the_links_lead_to_paths(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.inputs.opening.os.getpid", lambda: 0)
    held = HeldFiles(tmp_path / "scratch")
    held.open(tmp_path / "named", file).close()
    assert held.view(tmp_path / "named").readlink() == file


def test_errors_name_the_files_and_not_the_links(file: Path, tmp_path: Path) -> None:
    held = HeldFiles(tmp_path / "scratch")
    held.open(file, file).close()
    with pytest.raises(ModelInvalid) as caught, held.naming_paths():
        raise ModelInvalid(f"{held.view(file)} is no model", param="model")
    assert caught.value.detail == f"{file} is no model"
    assert caught.value.param == "model"

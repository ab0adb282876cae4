"""A request may name only local paths below the allowed folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import InvalidParameter, ModelNotFound, PathNotAllowed
from service.inputs.local import allowed_path
from service.settings import Settings


def allowed(path: object, *roots: Path) -> Path:
    settings = Settings(allowed_roots=roots)
    return allowed_path(str(path), settings, ModelNotFound, "model.path")


def test_a_path_in_any_root_is_allowed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "model").mkdir(parents=True)
        path = tmp_path / name / "model"
        assert allowed(path, tmp_path / "a", tmp_path / "b") == path
    assert allowed(tmp_path / "a", tmp_path / "a") == tmp_path / "a"


def test_links_within_the_roots_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "model")
    assert allowed(tmp_path / "link", tmp_path) == tmp_path / "model"


def test_what_leads_out_is_refused_with_the_roots_named(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "inner").mkdir(parents=True)
    (root / "link").symlink_to(tmp_path)
    (tmp_path / "root-not").mkdir()
    for path in (
        tmp_path,
        root / "..",
        root / "link",
        root / "link/root-not",
        root / "../root-not",
    ):
        with pytest.raises(PathNotAllowed, match=str(root)) as caught:
            allowed(path, root)
        assert caught.value.param == "model.path"


def test_nothing_is_told_about_paths_outside(tmp_path: Path) -> None:
    with pytest.raises(PathNotAllowed):
        allowed(tmp_path / "absent", tmp_path / "root")


def test_without_roots_nothing_is_read(tmp_path: Path) -> None:
    with pytest.raises(PathNotAllowed, match="EIGENPRESS_ALLOWED_ROOTS"):
        allowed(tmp_path)


@pytest.mark.parametrize("path", ["model", "./model", "~/model", "", "/a\0b"])
def test_a_path_that_is_not_absolute(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidParameter, match="not an absolute path"):
        allowed(path, tmp_path)


def test_the_data_folder_is_never_read_nor_a_folder_that_contains_it(tmp_path: Path) -> None:
    data_dir = tmp_path / "root" / "data"
    (data_dir / "s3").mkdir(parents=True)
    (tmp_path / "root" / "texts").mkdir()
    (tmp_path / "root" / "link").symlink_to(data_dir)
    settings = Settings(allowed_roots=(tmp_path,), data_dir=data_dir)

    def read(path: Path) -> Path:
        return allowed_path(str(path), settings, ModelNotFound, "model.path")

    assert read(tmp_path / "root" / "texts")
    for path in (data_dir, data_dir / "s3", tmp_path / "root", tmp_path / "root" / "link"):
        with pytest.raises(PathNotAllowed, match="data folder") as caught:
            read(path)
        assert caught.value.param == "model.path"


def test_the_jobs_database_is_never_read_wherever_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "db"
    (folder / "texts").mkdir(parents=True)
    names = ("jobs.db", "jobs.db-wal", "jobs.db-shm", "link", "jobs.txt")
    for name in names[:3]:
        (folder / name).touch()
    (folder / "link").symlink_to(folder / "jobs.db")
    (folder / "jobs.txt").touch()
    settings = Settings(
        allowed_roots=(tmp_path / "root",),
        data_dir=tmp_path / "data",
        database_url=f"sqlite:///{folder / 'jobs.db'}",
    )

    def read(path: Path) -> Path:
        return allowed_path(str(path), settings, ModelNotFound, "model.path")

    for path in (folder / "texts", folder / "jobs.txt"):
        assert read(path) == path
    for path in (*(folder / name for name in names[:4]), folder, folder.parent):
        with pytest.raises(PathNotAllowed, match="part of the server's jobs database, or contains"):
            read(path)


def test_an_absent_path(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="nothing at"):
        allowed(tmp_path / "absent", tmp_path)


def test_paths_that_cannot_be_resolved(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ModelNotFound):
        allowed(tmp_path / "loop", tmp_path)
    with pytest.raises(ModelNotFound):
        allowed(tmp_path / ("x" * 4000), tmp_path)

"""A link that takes the place of an input after it was allowed is not followed."""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pytest
from pyarrow import parquet

from service.domain.spec.sources import LocalData, LocalPath
from service.errors import DataInvalid, EigenpressError, ModelInvalid, PathNotAllowed
from service.inputs import opening
from service.inputs.models import sources
from service.inputs.models.sources import check_model, fetch_model
from service.inputs.opening import HeldFiles
from service.inputs.texts.documents import read_documents, read_records
from service.inputs.texts.parquet_files import ParquetReader
from service.inputs.texts.sources import check_data, fetch_data
from service.settings import Settings
from tests.fixtures.gguf_files import header

SECRET = '{"text": "the secret of somebody else"}'
SHARD = "part-1.safetensors"
TEMPLATE = "additional_chat_templates/tool_use.jinja"
PARAM = "calibration.data"

Act = Callable[[Path, Settings], object]
BeforeOpening = Callable[[Path, Callable[[], None]], None]


@pytest.fixture
def settings(allowed_root: Path, tmp_path: Path) -> Settings:
    return Settings(allowed_roots=(allowed_root,), data_dir=tmp_path / "data")


@pytest.fixture
def model(model_folder: Path) -> Path:
    """A model of one shard, with a licence and a chat template."""
    (model_folder / "model.safetensors").rename(model_folder / SHARD)
    index = {"metadata": {}, "weight_map": {"model.norm.weight": SHARD}}
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (model_folder / "LICENSE").write_text("free")
    (model_folder / TEMPLATE).parent.mkdir()
    (model_folder / TEMPLATE).write_text("{{ tools }}")
    return model_folder


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A folder outside of the allowed one, in which every name of the inputs is a secret."""
    folder = tmp_path / "outside"
    for name in ("LICENSE", "config.json", SHARD, TEMPLATE, "model.gguf", "a.txt", "a.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(SECRET)
    return folder


@pytest.fixture
def before_opening(monkeypatch: pytest.MonkeyPatch) -> BeforeOpening:
    """A function that has something done between the check of a path and its opening."""
    real = opening._open

    def arrange(path: Path, act: Callable[[], None]) -> None:
        def open_(resolved: Path, flags: int) -> int:
            if resolved == path:
                act()
            return real(resolved, flags)

        monkeypatch.setattr(opening, "_open", open_)

    return arrange


def replace(path: Path, target: Path) -> None:
    """Put a link where a file or a folder was; once is enough."""
    if not path.is_symlink():
        path.rename(path.with_name("moved away"))
        path.symlink_to(target)


def check(path: Path, settings: Settings) -> None:
    check_model(LocalPath(source="local", path=str(path)), settings)


def fetch(path: Path, settings: Settings) -> Path:
    held = HeldFiles(settings.scratch_dir / "job-1-1")
    return fetch_model(LocalPath(source="local", path=str(path)), settings, held)


def refused(kind: type[EigenpressError], act: Callable[[], object]) -> None:
    with pytest.raises(kind) as caught:
        act()
    log = "".join(traceback.format_exception(caught.value))
    assert "somebody else" not in log


@pytest.mark.parametrize("act", [check, fetch])
@pytest.mark.parametrize("name", ["LICENSE", "config.json", SHARD, TEMPLATE])
def test_a_file_of_a_model(
    model: Path,
    secret: Path,
    settings: Settings,
    before_opening: BeforeOpening,
    act: Act,
    name: str,
) -> None:
    before_opening(model / name, lambda: replace(model / name, secret / name))
    refused(ModelInvalid, lambda: act(model, settings))


@pytest.mark.parametrize("act", [check, fetch])
@pytest.mark.parametrize("opened", [".", "config.json", TEMPLATE])
def test_the_folder_of_a_model(
    model: Path,
    secret: Path,
    settings: Settings,
    before_opening: BeforeOpening,
    act: Act,
    opened: str,
) -> None:
    before_opening(model / opened, lambda: replace(model, secret))
    refused(ModelInvalid, lambda: act(model, settings))


@pytest.mark.parametrize("act", [check, fetch])
def test_a_folder_above_a_model(
    model: Path, secret: Path, settings: Settings, before_opening: BeforeOpening, act: Act
) -> None:
    inner = model.parent / "inner"
    inner.mkdir()
    model.rename(inner / "model")
    secret.rename(secret.with_name("model"))
    before_opening(inner / "model" / "LICENSE", lambda: replace(inner, secret.parent))
    refused(ModelInvalid, lambda: act(inner / "model", settings))


@pytest.mark.parametrize("act", [check, fetch])
def test_a_gguf_file(
    allowed_root: Path, secret: Path, settings: Settings, before_opening: BeforeOpening, act: Act
) -> None:
    path = allowed_root / "model.gguf"
    path.write_bytes(header())
    before_opening(path, lambda: replace(path, secret / "model.gguf"))
    refused(ModelInvalid, lambda: act(path, settings))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("act", [check, fetch])
@pytest.mark.parametrize("name", ["LICENSE", "config.json"])
def test_a_pipe_in_place_of_a_file(
    model: Path, settings: Settings, before_opening: BeforeOpening, act: Act, name: str
) -> None:
    def put_pipe() -> None:
        (model / name).unlink()
        os.mkfifo(model / name)

    before_opening(model / name, put_pipe)
    refused(ModelInvalid, lambda: act(model, settings))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("act", [check, fetch])
def test_a_pipe_from_the_beginning_is_no_part_of_a_model(
    model: Path, settings: Settings, act: Act
) -> None:
    (model / "LICENSE").unlink()
    os.mkfifo(model / "LICENSE")
    act(model, settings)


def test_after_it_was_fetched_a_model_is_read_as_it_was(
    model: Path, secret: Path, settings: Settings
) -> None:
    held = HeldFiles(settings.scratch_dir / "job-1-1")
    folder = fetch_model(LocalPath(source="local", path=str(model)), settings, held)
    names = ("LICENSE", "config.json", SHARD, TEMPLATE)
    before = {name: (model / name).read_bytes() for name in names}
    for name in names:
        replace(model / name, secret / name)
    replace(model, secret)
    assert {name: (folder / name).read_bytes() for name in names} == before


def test_a_fetched_model_has_no_other_files(model: Path, settings: Settings) -> None:
    for name in ("optimizer.pt", "modeling_evil.py", "NOTES.md", "extra.safetensors"):
        (model / name).write_text("{}")
    held = HeldFiles(settings.scratch_dir / "job-1-1")
    folder = fetch_model(LocalPath(source="local", path=str(model)), settings, held)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    index = "model.safetensors.index.json"
    assert found == {"config.json", "tokenizer.json", index, SHARD, "LICENSE", TEMPLATE}


@pytest.mark.parametrize("act", [check, fetch])
def test_links_within_the_roots_are_followed(model: Path, settings: Settings, act: Act) -> None:
    """The hub's cache keeps its snapshots like this."""
    blobs = model.parent / "blobs"
    blobs.mkdir()
    for number, name in enumerate(("LICENSE", "config.json", SHARD, TEMPLATE.partition("/")[0])):
        (model / name).rename(blobs / str(number))
        absolute = blobs if number % 2 else Path("../blobs")
        (model / name).symlink_to(absolute / str(number))
    (model.parent / "link").symlink_to(model)
    act(model.parent / "link", settings)


def test_an_error_does_not_tell_where_a_link_leads(
    model: Path, secret: Path, settings: Settings
) -> None:
    (secret / "link").symlink_to("somebody else")
    (model / "NOTICE").symlink_to(secret / "link")
    refused(PathNotAllowed, lambda: check(model, settings))


@pytest.mark.parametrize("act", [check, fetch])
def test_a_local_model_may_have_too_many_files(
    model: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, act: Act
) -> None:
    act(model, settings)
    monkeypatch.setattr(sources, "MAX_MODEL_FILES", 4)
    with pytest.raises(ModelInvalid, match="more than 4 files"):
        act(model, settings)


@pytest.mark.parametrize("act", [check, fetch])
def test_a_file_that_grows_is_not_read_beyond_its_size(
    model: Path, settings: Settings, before_opening: BeforeOpening, act: Act
) -> None:
    config = model / "config.json"

    def grow() -> None:
        with config.open("a") as file:
            file.write("nonsense")

    before_opening(config, grow)
    act(model, settings)


@pytest.fixture
def texts(allowed_root: Path) -> Path:
    folder = allowed_root / "texts" / "inner"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("open to all")
    (folder / "a.jsonl").write_text('{"text": "open to all"}\n')
    return folder.parent


def documents(root: Path, pattern: str = "**/*") -> list[str]:
    return [document.text for document in read_documents(root, pattern, "text", PARAM)]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_text_file(texts: Path, secret: Path, before_opening: BeforeOpening, name: str) -> None:
    path = texts / "inner" / name
    before_opening(path, lambda: replace(path, secret / name))
    refused(DataInvalid, lambda: documents(texts))


def test_a_text_is_read_as_it_was_opened(
    texts: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process reads Parquet."""
    for folder, text in ((texts, "open to all"), (secret, SECRET)):
        parquet.write_table(arrow.table({"text": [text]}), folder / "a.parquet")
    real = ParquetReader.open

    def replace_and_open(self: ParquetReader, *args: Any) -> Any:
        replace(texts / "a.parquet", secret / "a.parquet")
        return real(self, *args)

    monkeypatch.setattr(ParquetReader, "open", replace_and_open)
    assert documents(texts, "*.parquet") == ["open to all"]


def test_a_file_of_problems(texts: Path, secret: Path, before_opening: BeforeOpening) -> None:
    path = texts / "inner" / "a.jsonl"
    before_opening(path, lambda: replace(path, secret / "a.jsonl"))
    refused(DataInvalid, lambda: list(read_records(path, "*", {"text": PARAM}, PARAM)))


@pytest.mark.parametrize("opened", ["inner", "inner/a.txt"])
def test_a_folder_of_texts(
    texts: Path, secret: Path, before_opening: BeforeOpening, opened: str
) -> None:
    before_opening(texts / opened, lambda: replace(texts / "inner", secret))
    refused(DataInvalid, lambda: documents(texts))


@pytest.mark.parametrize("pattern", ["**/*", "a.txt"])
def test_the_whole_text_after_it_was_fetched(
    texts: Path, secret: Path, settings: Settings, pattern: str
) -> None:
    def read_replaced(path: Path, target: Path) -> None:
        source = LocalData(source="local", path=str(path))
        check_data(source, settings, PARAM)
        root = fetch_data(source, settings, PARAM).root
        replace(path, target)
        documents(root, pattern)

    refused(EigenpressError, lambda: read_replaced(texts / "inner" / "a.txt", secret / "a.txt"))
    refused(EigenpressError, lambda: read_replaced(texts / "inner", secret))


def test_the_one_named_file_may_not_become_a_link_to_the_data_folder(
    allowed_root: Path,
) -> None:
    """The folder around it may contain what jobs must not read."""
    path, data = allowed_root / "a.txt", allowed_root / "data"
    path.write_text("open to all")
    data.mkdir()
    (data / "key").write_text(SECRET)
    replace(path, data / "key")
    refused(PathNotAllowed, lambda: documents(path))


@pytest.mark.timeout(20)
def test_a_pipe_in_place_of_a_text(texts: Path, before_opening: BeforeOpening) -> None:
    path = texts / "inner" / "a.txt"

    def put_pipe() -> None:
        path.unlink()
        os.mkfifo(path)

    before_opening(path, put_pipe)
    refused(DataInvalid, lambda: documents(texts))

"""A worker reads the model that was checked, whatever becomes of the files meanwhile."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from service.domain.spec.job import JobSpec
from service.domain.spec.sources import LocalPath
from service.errors import ModelInvalid
from service.inputs.models.sources import fetch_model
from service.inputs.opening import HeldFiles
from service.settings import Settings
from tests.fixtures.gguf_files import write_llama
from tests.fixtures.models import save_tiny_model, tiny_llama_config
from workers.actors.interface import Worker
from workers.artifact.checkpoint_writer import copy_companions
from workers.model.loading import load_model, prepare_model
from workers.model.stored_tensors import StoredTensors
from workers.model.tokenizer import load_tokenizer
from workers.resumption.fingerprint import model_digest

CPU = torch.device("cpu")
SECRET = "the secret of somebody else"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("EIGENPRESS_ALLOWED_ROOTS", str(tmp_path / "models"))
    monkeypatch.setenv("EIGENPRESS_DATA_DIR", str(tmp_path / "data"))
    return Settings()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama with a licence, of the test's own."""
    folder = save_tiny_model(tmp_path / "models" / "small", tiny_llama_config())
    (folder / "LICENSE").write_text("free")
    return folder


def prepared(path: Path, held: HeldFiles) -> Path:
    source, settings = LocalPath(source="local", path=str(path)), Settings()
    return prepare_model(fetch_model(source, settings, held), settings)


@pytest.fixture
def held(settings: Settings) -> HeldFiles:
    return HeldFiles(settings.scratch_dir / "job-1-1")


def replace_all(folder: Path) -> None:
    """Put links to a secret where the files were."""
    (folder.parents[1] / "secret").write_text(SECRET)
    for path in list(folder.iterdir()):
        path.unlink()
        path.symlink_to(folder.parents[1] / "secret")


def test_everything_is_read_from_the_files_that_were_checked(
    folder: Path, held: HeldFiles, tmp_path: Path
) -> None:
    digest, weights = model_digest(folder), load_model(folder, CPU).state_dict()
    source = prepared(folder, held)
    assert source.name == folder.name
    replace_all(folder)
    assert model_digest(source) == digest
    assert set(StoredTensors(source)) <= weights.keys()
    for name, value in load_model(source, CPU).state_dict().items():
        assert torch.equal(value, weights[name])
    assert load_tokenizer(source)("a")["input_ids"]
    (tmp_path / "artifact").mkdir()
    copy_companions(source, tmp_path / "artifact")
    assert (tmp_path / "artifact" / "LICENSE").read_text() == "free"
    assert not any(SECRET in path.read_text() for path in (tmp_path / "artifact").iterdir())


def test_errors_name_the_path_of_the_request(folder: Path, settings: Settings) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["model_type"]
    (folder / "config.json").write_text(json.dumps(config))
    spec = JobSpec.model_validate(
        {
            "model": {"source": "local", "path": str(folder)},
            "calibration": {"data": {"source": "local", "path": str(folder)}},
            "targets": [{"keep": 0.5}],
        }
    )
    worker = Worker(spec, "job-1-1", 0, torch.get_num_threads(), gpus=1)
    with pytest.raises(ModelInvalid) as caught:
        worker.load()
    assert f" {folder}. " in caught.value.detail
    assert str(settings.scratch_dir) not in caught.value.detail


def test_a_gguf_file_that_changes_is_not_converted(
    tmp_path: Path, settings: Settings, held: HeldFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the cache would hold a model of its writer's choice for all who name the old one."""
    (tmp_path / "models").mkdir()
    gguf = write_llama(tmp_path / "models" / "model.gguf")
    other = write_llama(tmp_path / "other.gguf", left_out="output.weight").read_bytes()
    copy = shutil.copyfile

    def change_and_copy(source: Path, target: Path) -> None:
        gguf.write_bytes(other)
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", change_and_copy)
    with pytest.raises(ModelInvalid, match=r"model\.gguf was changed"):
        prepared(gguf, held)
    monkeypatch.undo()
    assert [path.suffix for path in (settings.cache_dir / "gguf").iterdir()] == [".lock"]


def test_a_gguf_file_is_converted_as_it_was_checked(tmp_path: Path, held: HeldFiles) -> None:
    (tmp_path / "models").mkdir()
    folder = prepared(write_llama(tmp_path / "models" / "model.gguf"), held)
    assert load_model(folder, CPU).config.num_hidden_layers == 1
    assert not list(folder.glob("*.gguf"))
    assert not any(str(tmp_path) in path.read_text() for path in folder.glob("*.json"))

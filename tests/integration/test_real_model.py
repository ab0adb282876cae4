"""A real model from a real GGUF file: SmolLM2-135M-Instruct."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench import demo_data
from service.errors import ModelInvalid
from service.settings import Settings
from service.spec import LocalPath
from workers.evaluator import text_loss
from workers.model import load_model, load_tokenizer, parameter_count, prepare_model, stored_dtype

SORTING = "def bubble_sort(items):\n    for i in range(len(items)):\n        for j in range(i):\n"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        data_dir=tmp_path_factory.mktemp("data"), allowed_roots=(demo_data.model_file().parent,)
    )


@pytest.fixture(scope="module")
def folder(settings: Settings) -> Path:
    return prepare_model(LocalPath(source="local", path=str(demo_data.model_file())), settings)


def test_a_gguf_file_becomes_a_plain_checkpoint(folder: Path) -> None:
    assert stored_dtype(folder) == torch.float32
    assert "quantization_config" not in (folder / "config.json").read_text()


def test_it_is_converted_once(folder: Path, settings: Settings) -> None:
    written = (folder / "model.safetensors").stat().st_mtime_ns
    source = LocalPath(source="local", path=str(demo_data.model_file()))
    assert prepare_model(source, settings) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_the_converted_model_knows_python(folder: Path) -> None:
    model, tokenizer = load_model(folder, torch.device("cpu")), load_tokenizer(folder)
    assert parameter_count(model) == 134_515_008
    loss = text_loss(model, [tokenizer(SORTING)["input_ids"]])
    assert loss.perplexity < 10


def test_a_damaged_gguf_file_is_refused(settings: Settings, tmp_path: Path) -> None:
    damaged = tmp_path / "model.gguf"
    damaged.write_bytes(demo_data.model_file().read_bytes()[:1_000_000])
    allowed = settings.model_copy(update={"allowed_roots": (tmp_path,)})
    with pytest.raises(ModelInvalid):
        prepare_model(LocalPath(source="local", path=str(damaged)), allowed)
    assert not list(settings.cache_dir.glob("gguf/*.partial"))

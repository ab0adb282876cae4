from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.fixtures.models import save_tiny_model, tiny_llama_config
from workers.artifact.checkpoint_writer import write_checkpoint
from workers.model.configuration import without_kernels
from workers.model.loading import load_model
from workers.model.tensor_names import empty_model

CPU = torch.device("cpu")


@pytest.fixture(params=["attn_implementation", "_attn_implementation", "experts_implementation"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A model whose configuration asks for kernels that are compiled, or do not exist."""
    folder = save_tiny_model(tmp_path / "model", tiny_llama_config())
    config = json.loads((folder / "config.json").read_text())
    value = "x" if request.param.startswith("experts") else "flex_attention"
    (folder / "config.json").write_text(json.dumps(config | {request.param: value}))
    return folder


def test_a_configuration_does_not_choose_the_kernels(folder: Path) -> None:
    assert load_model(folder, CPU).config._attn_implementation == "sdpa"
    assert empty_model(folder).config._attn_implementation == "sdpa"


def test_an_artifact_names_no_kernels(folder: Path, tmp_path: Path) -> None:
    write_checkpoint(folder, tmp_path / "artifact", {}, lambda _: [], torch.float32)
    config = json.loads((tmp_path / "artifact" / "config.json").read_text())
    assert not [name for name in config if "implementation" in name]


def test_settings_of_kernels_are_found_at_any_depth() -> None:
    config = {"a": 1, "attn_implementation": "x", "text_config": {"_attn_implementation": "x"}}
    assert without_kernels(config) == {"a": 1, "text_config": {}}

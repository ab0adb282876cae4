"""A real model from a real GGUF file: SmolLM2-135M-Instruct."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from bench import demo_data
from bench.material import solved, truncated
from service.errors import ModelInvalid
from service.inputs.texts.documents import read_documents
from service.settings import Settings
from tests.fixtures.calibration import calibrated
from workers.compression.allocation import ALLOCATIONS
from workers.compression.checkpoint import replace_layers
from workers.compression.interpolation import interpolate
from workers.compression.layers import compressible_layers, input_groups
from workers.compression.metrics import METHODS
from workers.compression.solve import Solution
from workers.evaluation.text import text_loss
from workers.model.loading import (
    load_model,
    parameter_count,
    prepare_model,
    stored_dtype,
)
from workers.model.tokenizer import load_tokenizer
from workers.text.sequences import calibration_sequences, evaluation_sequences, split_documents

SORTING = "def bubble_sort(items):\n    for i in range(len(items)):\n        for j in range(i):\n"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(data_dir=tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def folder(settings: Settings) -> Path:
    return prepare_model(demo_data.model_file(), settings)


def test_a_gguf_file_becomes_a_plain_checkpoint(folder: Path) -> None:
    assert stored_dtype(folder) == torch.float32
    assert "quantization_config" not in (folder / "config.json").read_text()


def test_it_is_converted_once(folder: Path, settings: Settings) -> None:
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert prepare_model(demo_data.model_file(), settings) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


def test_the_converted_model_knows_python(folder: Path) -> None:
    model, tokenizer = load_model(folder, torch.device("cpu")), load_tokenizer(folder)
    assert parameter_count(model) == 134_515_008
    loss = text_loss(model, [tokenizer(SORTING)["input_ids"]])
    assert loss.perplexity < 10


def block_number(layer: str) -> int:
    return int(layer.split(".")[2])


def test_methods_rank_as_they_should_on_a_real_model(folder: Path, tmp_path: Path) -> None:
    """At one size: impact with global ranks before afm with uniform ones, plain svd far behind.

    Every third block is compressed, on 2,048 tokens: all of them take minutes, and are compared in
    docs/quality.md.
    """
    model, tokenizer = load_model(folder, torch.device("cpu")), load_tokenizer(folder)
    demo_data.copy_standard_library(tmp_path / "text")
    documents = read_documents(tmp_path / "text", "**/*.py", "text", "calibration.data")
    ours, held_out = split_documents(documents, 0.1, seed=0)
    calibration = calibration_sequences(ours, tokenizer, length=128, count=16, seed=0)
    evaluation = evaluation_sequences(held_out, tokenizer, length=128, count=8, seed=0)
    layers = compressible_layers(model)
    third = tuple(layer for layer in layers if block_number(layer.name) % 3 == 0)
    groups = input_groups(model, third)
    observations = METHODS["impact"].observations  # of all three methods
    batches = [torch.tensor(calibration[:8]), torch.tensor(calibration[8:])]
    statistics = calibrated(model, *batches, observations=observations, groups=groups)

    def perplexity(method: str, allocation: str) -> float:
        solutions: dict[str, Solution] = {}
        for group in groups:
            solutions |= solved(model, group, statistics[group.name], METHODS[method])
        options = [solution.options() for solution in solutions.values()]
        budget = int(0.6 * sum(layer.dense_cost for layer in options))
        ranks = ALLOCATIONS[allocation](options)(budget)
        compressed = {
            name: interpolate(truncated(model, solutions[name], rank))
            for name, rank in ranks.items()
            if rank
        }
        return text_loss(replace_layers(copy.deepcopy(model), compressed), evaluation).perplexity

    dense = text_loss(model, evaluation).perplexity
    impact = perplexity("impact", "global")
    afm = perplexity("afm", "uniform")
    svd = perplexity("svd", "uniform")
    assert dense < impact < 1.3 * dense
    assert 1.1 * impact < afm
    assert 100 * afm < svd


def test_a_damaged_gguf_file_is_refused(settings: Settings, tmp_path: Path) -> None:
    damaged = tmp_path / "model.gguf"
    damaged.write_bytes(demo_data.model_file().read_bytes()[:1_000_000])
    with pytest.raises(ModelInvalid):
        prepare_model(damaged, settings)
    assert not list(settings.cache_dir.glob("gguf/*.partial"))

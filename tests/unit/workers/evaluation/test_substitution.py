"""A size in memory equals its artifact, and can be undone without a trace."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fixtures.models import ARCHITECTURES, save_tiny_model
from workers.artifact.checkpoint_writer import write_checkpoint
from workers.compression.interpolation import Interpolation, interpolate
from workers.compression.layers import compressible_layers
from workers.compression.solve import Factors
from workers.compression.unfuse import unfuse
from workers.evaluation.substitution import Substitution
from workers.model.loading import load_model

CPU = torch.device("cpu")
QUERY, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
RANKS = {QUERY: 5, UP: 9}


def low_rank(out_features: int, rank: int, in_features: int = 32) -> Interpolation:
    generator = torch.Generator().manual_seed(rank)
    down = torch.randn(rank, in_features, generator=generator)
    up, bias = (torch.randn(out_features, n, generator=generator) for n in (rank, 1))
    return interpolate(Factors(down, up, bias[:, 0]))


LAYERS = {QUERY: low_rank(32, 5), UP: low_rank(80, 9)}


def logits(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=torch.arange(40)[None]).logits
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_it_computes_what_the_artifact_does(
    tiny_llama: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    write_checkpoint(
        tiny_llama, tmp_path / "artifact", RANKS, partial(map, LAYERS.__getitem__), dtype
    )
    artifact = load_model(tmp_path / "artifact", CPU, trust_remote_code=True)
    model = load_model(tiny_llama, CPU)
    substitution = Substitution(model, dtype, exact=dtype is torch.float32)
    substitution.put(LAYERS)
    assert torch.equal(logits(model), logits(artifact))
    assert substitution.exact is (dtype is torch.float32)


def test_layers_are_replaced_again_and_put_back(tiny_llama: Path) -> None:
    model = load_model(tiny_llama, CPU)
    dense = logits(model)
    substitution = Substitution(model, torch.float32, exact=True)
    substitution.put({QUERY: low_rank(32, 2)})
    substitution.put(LAYERS)
    both = logits(model)
    substitution.put({UP: None})
    assert not torch.equal(logits(model), both)
    substitution.put({QUERY: None})
    assert torch.equal(logits(model), dense)
    substitution.put(LAYERS)
    assert torch.equal(logits(model), both)
    substitution.undo()
    assert torch.equal(logits(model), dense)


@pytest.mark.parametrize("architecture", ["mixtral", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_so_do_the_linear_layers_of_fused_modules(
    tmp_path: Path, architecture: str, dtype: torch.dtype
) -> None:
    source = save_tiny_model(tmp_path / "source", ARCHITECTURES[architecture])
    model = load_model(source, CPU)
    assert unfuse(model)
    layers = {
        layer.name: low_rank(layer.out_features, 4, layer.in_features)
        for layer in compressible_layers(model)
    }
    ranks = dict.fromkeys(layers, 4)
    write_checkpoint(source, tmp_path / "artifact", ranks, partial(map, layers.__getitem__), dtype)
    artifact = load_model(tmp_path / "artifact", CPU, trust_remote_code=True)
    Substitution(model, dtype, exact=dtype is torch.float32).put(layers)
    assert torch.equal(logits(model), logits(artifact))

"""A model that is read block by block computes as one that is loaded whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from service.errors import ModelInvalid
from tests.fixtures.models import ARCHITECTURES, save_tiny_model, tiny_llama_config
from workers.compression.layers import compressible_layers, input_groups
from workers.compression.unfuse import unfuse
from workers.model.blocks import StoredModel, traced_groups
from workers.model.loading import load_model

CPU = torch.device("cpu")
TOKENS = torch.randint(258, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources") / request.param
    return save_tiny_model(folder, ARCHITECTURES[request.param])


@torch.no_grad()
def computed(stored: StoredModel) -> Tensor:
    hidden, calls = stored.passage.enter(TOKENS)
    for number, call in enumerate(calls):
        with stored.hold(number, number + 1 if number + 1 < len(calls) else None) as block:
            hidden = call(block, hidden)
    return stored.passage.leave(hidden)


def test_the_logits_are_those_of_the_whole_model(source: Path) -> None:
    with torch.no_grad():
        expected = load_model(source, CPU)(input_ids=TOKENS, use_cache=False).logits
    torch.testing.assert_close(computed(StoredModel(source, CPU)), expected, rtol=1e-4, atol=1e-5)


def test_no_weights_of_a_block_stay_behind(source: Path) -> None:
    stored = StoredModel(source, CPU)
    computed(stored)
    assert all(parameter.is_meta for parameter in stored.passage.blocks.parameters())
    assert not any(
        parameter.is_meta
        for name, parameter in stored.model.named_parameters()
        if not name.startswith(f"{stored.passage.prefix}.")
    )


def test_groups_are_found_without_weights(source: Path) -> None:
    model = load_model(source, CPU)
    unfuse(model)
    assert traced_groups(source) == input_groups(model, compressible_layers(model))


def test_weights_are_read_by_name(source: Path) -> None:
    model = load_model(source, CPU)
    unfuse(model)
    for group in traced_groups(source):
        names = [f"{layer.name}.weight" for layer in group.layers]
        read = StoredModel(source, CPU).read(names)
        assert read.keys() == set(names)
        for name, tensor in read.items():
            assert torch.equal(tensor, model.get_parameter(name))


def test_a_weight_that_is_not_finite_is_refused_by_name_where_it_is_needed(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", tiny_llama_config())
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 4] = float("inf")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelInvalid, match=f"the tensor '{name}' is not finite"):
        computed(StoredModel(folder, CPU))

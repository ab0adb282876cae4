"""Every architecture passes all steps: calibrate, solve, save, load, generate, expand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM

from tests.fixtures.calibration import calibrated
from tests.fixtures.models import ARCHITECTURES, save_tiny_model, tiny_model
from workers.artifact.checkpoint_writer import write_checkpoint
from workers.artifact.expand import expand
from workers.compression.checkpoint import replace_layers
from workers.compression.interpolation import Interpolation, interpolate
from workers.compression.layers import compressible_layers, input_groups
from workers.compression.metrics import METHODS
from workers.compression.solve import Factors, Solution, solve_group
from workers.compression.unfuse import unfuse
from workers.model.loading import load_model

CPU = torch.device("cpu")
TOKENS = torch.randint(258, (4, 24), generator=torch.Generator().manual_seed(0))
FULL = 1 << 20

PLAIN_WITH_BIASES = {"llama", "opt", "gpt2", "gpt-neox"}
"""Architectures with a place for the bias of every linear layer."""


@dataclass(frozen=True)
class Solved:
    """A source model, its parameters, and the solutions of all its layers, of every rank."""

    name: str
    source: Path
    parameters: Mapping[str, Tensor]
    solutions: Mapping[str, Solution]

    def model(self) -> Any:
        """The source model, unfused."""
        model = load_model(self.source, CPU)
        unfuse(model)
        return model

    def layers(self, rank: int) -> dict[str, Interpolation]:
        return {
            name: interpolate(self._truncated(solution, min(rank, solution.max_rank)))
            for name, solution in self.solutions.items()
            if solution.max_rank
        }

    def _truncated(self, solution: Solution, rank: int) -> Factors:
        name = solution.layer.name
        weight, bias = self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias")
        return solution.truncate(rank, weight, bias)

    def write(self, folder: Path, layers: Mapping[str, Interpolation]) -> Path:
        ranks = {name: layer.rank for name, layer in layers.items()}
        write_checkpoint(
            self.source, folder, ranks, partial(map, layers.__getitem__), torch.float32
        )
        return folder


def solved(name: str, source: Path, method: str, tokens: Tensor = TOKENS) -> Solved:
    model = load_model(source, CPU)
    unfuse(model)
    groups = input_groups(model, compressible_layers(model))
    statistics = calibrated(model, tokens, observations=METHODS[method].observations, groups=groups)
    solutions: dict[str, Solution] = {}
    for group in groups:
        modules = {layer.name: model.get_submodule(layer.name) for layer in group.layers}
        solutions |= solve_group(
            group,
            {name: module.weight for name, module in modules.items()},
            statistics[group.name],
            METHODS[method],
            max_rank=FULL,
        )
    return Solved(name, source, model.state_dict(), solutions)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sources") / request.param
    return save_tiny_model(folder, ARCHITECTURES[request.param])


@pytest.fixture(scope="module")
def case(source: Path) -> Solved:
    return solved(source.name, source, "impact")


def load(folder: Path, *, trusted: bool = True) -> Any:
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=trusted, output_loading_info=True
    )
    assert not any(loading.values())
    return model


@torch.no_grad()
def logits(model: Any) -> Tensor:
    result: Tensor = model(input_ids=TOKENS).logits
    return result


def assert_same(one: Any, other: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(logits(one), logits(other), rtol=tolerance, atol=tolerance)


def generated(model: Any) -> list[list[int]]:
    tokens: Tensor = model.generate(
        TOKENS[:1, :6], do_sample=False, min_new_tokens=12, max_new_tokens=12, use_cache=True
    )
    return tokens.tolist()


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_full_rank_reproduces_the_model(case: Solved) -> None:
    full = replace_layers(case.model(), case.layers(FULL))
    assert_same(full, load_model(case.source, CPU), 1e-4)


def test_an_artifact_and_its_expansion_compute_what_was_in_memory(
    case: Solved, tmp_path: Path
) -> None:
    layers = case.layers(5)
    expected = replace_layers(case.model(), layers)
    artifact = load(case.write(tmp_path / "artifact", layers))
    assert_same(artifact, expected)
    assert (logits(artifact) - logits(case.model())).abs().max() > 0.01
    assert generated(artifact) == generated(expected)
    expand(tmp_path / "artifact", tmp_path / "dense")
    plain = not (tmp_path / "dense" / "modeling_eigenpress.py").exists()
    assert plain == (case.name in PLAIN_WITH_BIASES)
    dense = load(tmp_path / "dense", trusted=not plain)
    assert_same(dense, artifact)
    assert generated(dense) == generated(artifact)


def test_the_base_model_is_compressed_too(case: Solved, tmp_path: Path) -> None:
    layers = dict(list(case.layers(5).items())[::2])
    folder = case.write(tmp_path / "artifact", layers)
    models: list[Any] = [
        AutoModel.from_pretrained(folder, trust_remote_code=True),
        load(folder).base_model,
    ]
    with torch.no_grad():
        one, other = (model(input_ids=TOKENS).last_hidden_state for model in models)
    assert torch.equal(one, other)


def test_parents_have_one_class_for_each_set_of_replaced_layers(
    case: Solved, tmp_path: Path
) -> None:
    """For vLLM, which treats the modules of a class alike."""
    layers = dict(list(case.layers(5).items())[::2])
    artifact = load(case.write(tmp_path / "artifact", layers))
    replaced: dict[type, set[tuple[str, ...]]] = {}
    for module in artifact.modules():
        names = [name for name, child in module.named_children() if hasattr(child, "basis")]
        replaced.setdefault(type(module), set()).add(tuple(names))
    assert {len(sets) for sets in replaced.values()} == {1}
    assert len({sets.pop() for sets in replaced.values()}) > 1


def test_layers_may_stay_dense(case: Solved, tmp_path: Path) -> None:
    layers = dict(list(case.layers(5).items())[1::2])
    artifact = load(case.write(tmp_path / "artifact", layers))
    assert_same(artifact, replace_layers(case.model(), layers))
    expand(tmp_path / "artifact", tmp_path / "dense")
    assert_same(load(tmp_path / "dense"), artifact)


def test_without_biases_the_expansion_is_a_plain_checkpoint_as_the_source_is_stored(
    source: Path, tmp_path: Path
) -> None:
    case = solved(source.name, source, "svd")
    artifact = load(case.write(tmp_path / "artifact", case.layers(5)))
    expand(tmp_path / "artifact", tmp_path / "dense")
    dense = load(tmp_path / "dense", trusted=False)
    assert type(dense) is type(tiny_model(ARCHITECTURES[source.name]))
    assert_same(dense, artifact)
    stored, before = (
        {name: tensor.shape for name, tensor in load_file(folder / "model.safetensors").items()}
        for folder in (tmp_path / "dense", source)
    )
    assert stored == before


def test_an_expert_that_no_token_reached_stays_dense(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "source", ARCHITECTURES["qwen3-moe"])
    case = solved("qwen3-moe", source, "impact", TOKENS[:1, :2])
    unreached = {name for name, solution in case.solutions.items() if not solution.max_rank}
    assert 0 < len(unreached) < 2 * 4 * 2
    assert all(".experts." in name for name in unreached)
    assert all(case.solutions[name].options().max_rank == 0 for name in unreached)
    layers = case.layers(1)
    artifact = load(case.write(tmp_path / "artifact", layers))
    assert_same(artifact, replace_layers(case.model(), layers))


def fused_as_in_memory(folder: Path) -> None:
    """Store a mixture's experts as the model holds them, as some checkpoints do."""
    model = load_model(folder, CPU)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def in_shards(folder: Path) -> None:
    """Spread the experts of a mixture over many files."""
    model = load_model(folder, CPU)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 8


@pytest.mark.parametrize("store", [fused_as_in_memory, in_shards])
@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe"])
def test_experts_are_read_however_they_are_stored(name: str, store: Any, tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / name, ARCHITECTURES[name])
    case = solved(name, source, "svd")
    layers = dict(list(case.layers(5).items())[1::2])
    case.write(tmp_path / "one", layers)
    store(source)
    artifact = load(case.write(tmp_path / "other", layers))
    assert_same(artifact, replace_layers(case.model(), layers))
    one, other = (load_file(tmp_path / each / "model.safetensors") for each in ("one", "other"))
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


def test_a_mixture_gives_the_same_bytes_every_time(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "source", ARCHITECTURES["mixtral"])
    folders = [
        solved("mixtral", source, "impact").write(
            tmp_path / name, solved("mixtral", source, "impact").layers(5)
        )
        for name in ("one", "two")
    ]
    one, two = ({p.name: p.read_bytes() for p in folder.iterdir()} for folder in folders)
    assert one == two

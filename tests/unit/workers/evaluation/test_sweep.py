"""Variants that are measured block by block compute as their artifacts do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.fixtures.models import ARCHITECTURES, save_tiny_model, tiny_llama_config
from workers.artifact.checkpoint_writer import write_checkpoint
from workers.compression.candidates import Width
from workers.compression.interpolation import Interpolation, interpolate
from workers.compression.rounding.embeddings import rounded_rows
from workers.compression.shapes import LinearLayer
from workers.compression.solve import Factors
from workers.evaluation.losses import TextLoss
from workers.evaluation.sweep import EvaluationSweep, rounded
from workers.evaluation.text import text_loss
from workers.model.blocks import StoredModel, traced_groups, vocabulary
from workers.model.loading import load_model
from workers.sweeps import passage
from workers.sweeps.boundaries import Boundaries

CPU = torch.device("cpu")
BATCHES = [[[*range(9)], [*range(40, 52)]], [[*range(100, 130)]]]


def low_rank(layer: LinearLayer) -> Interpolation:
    generator = torch.Generator().manual_seed(layer.out_features)
    down = torch.randn(4, layer.in_features, generator=generator)
    up, bias = (torch.randn(layer.out_features, n, generator=generator) for n in (4, 1))
    return interpolate(Factors(down / 8, up / 8, bias[:, 0]))


def measured(
    source: Path,
    variants: Sequence[Mapping[str, Interpolation]],
    dtype: torch.dtype | None,
    boundaries: Boundaries,
) -> list[list[TextLoss]]:
    stored = StoredModel(source, CPU, rounded=dtype)
    sweep = EvaluationSweep(stored.passage, stored, BATCHES, [{}] * len(variants), boundaries)
    for number in range(len(stored.passage.blocks)):
        sweep.forward(
            number,
            [
                {
                    name: layer if dtype is None else rounded(layer, dtype)
                    for name, layer in variant.items()
                    if stored.block_of(name) == number
                }
                for variant in variants
            ],
        )
    return sweep.losses()


def assert_same(found: TextLoss, expected: TextLoss) -> None:
    for ours, theirs in zip(found.each, expected.each, strict=True):
        assert (ours.tokens, ours.correct) == (theirs.tokens, theirs.correct)
        assert ours.negative_log_likelihood == pytest.approx(
            theirs.negative_log_likelihood, rel=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "mixtral"])
def test_every_variant_has_the_loss_of_its_artifact(
    tmp_path: Path, architecture: str, dtype: torch.dtype
) -> None:
    source = save_tiny_model(tmp_path / "source", ARCHITECTURES[architecture])
    found = [layer for group in traced_groups(source) for layer in group.layers]
    variants = [{layer.name: low_rank(layer) for layer in found[start::2]} for start in (0, 1)]
    boundaries = Boundaries({CPU: 1 << 30}, tmp_path / "boundaries")
    losses = measured(source, variants, dtype, boundaries)
    for number, layers in enumerate(variants):
        artifact = tmp_path / f"artifact-{number}"
        write_checkpoint(
            source, artifact, dict.fromkeys(layers, 4), partial(map, layers.__getitem__), dtype
        )
        model = load_model(artifact, CPU, trust_remote_code=True)
        for batch, loss in zip(BATCHES, losses[number], strict=True):
            assert_same(loss, text_loss(model, batch))


@pytest.mark.parametrize("name", ["tied", "untied", "gemma3"])
def test_a_variant_may_have_a_rounded_vocabulary(tmp_path: Path, name: str) -> None:
    """Beside others that have not: each has the loss of its artifact."""
    config = ARCHITECTURES.get(name, tiny_llama_config(tie_word_embeddings=name == "tied"))
    source, dtype = save_tiny_model(tmp_path / "source", config), torch.bfloat16
    matrices, stored = vocabulary(source), StoredModel(source, CPU, rounded=dtype)
    rounded = {
        each.name: rounded_rows(stored.model.get_submodule(each.name).weight, dtype)
        for each in matrices
    }
    boundaries = Boundaries({CPU: 1 << 30}, tmp_path / "boundaries")
    variants = [{}, rounded, {}]
    sweep = EvaluationSweep(stored.passage, stored, BATCHES, variants, boundaries)
    for number in range(len(stored.passage.blocks)):
        sweep.forward(number, [{}] * 3)
    before, ours, after = sweep.losses()
    assert before == after
    artifact, forms = tmp_path / "artifact", dict.fromkeys(rounded, Width(8))
    made = partial(map, rounded.__getitem__)
    write_checkpoint(source, artifact, forms, made, dtype, matrices)
    model = load_model(artifact, CPU)
    for batch, loss, dense in zip(BATCHES, ours, before, strict=True):
        assert loss != dense
        assert_same(loss, text_loss(model, batch))


def test_without_layers_it_is_the_source(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with boundaries in files, and few logits at a time."""
    monkeypatch.setattr(passage, "LOGITS_BYTES", 4 * 258 * 5)
    boundaries = Boundaries({CPU: 0}, tmp_path / "boundaries")
    (losses,) = measured(tiny_llama, [{}], None, boundaries)
    model = load_model(tiny_llama, CPU)
    for batch, loss in zip(BATCHES, losses, strict=True):
        assert_same(loss, text_loss(model, batch))

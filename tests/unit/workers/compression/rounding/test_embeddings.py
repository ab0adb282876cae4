"""Embeddings and output layers as integers, alone and tied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.fixtures.models import ARCHITECTURES, tiny_llama_config, tiny_model
from workers.compression.errors import UnsupportedLayer
from workers.compression.rounding import embeddings
from workers.compression.rounding.embeddings import (
    in_place,
    multiplied_out,
    rounded_rows,
    vocabulary_matrices,
)
from workers.compression.shapes import VocabularyMatrix

EMBEDDING = "model.embed_tokens"
TOKENS = torch.arange(24).reshape(2, 12)


def matrix(rows: int = 50, columns: int = 96) -> Tensor:
    """Rows of very different sizes, two of them padding."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-3, 2, rows)[:, None]
    weight = torch.randn(rows, columns, generator=generator) * sizes
    weight[[0, 7]] = 0
    return weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_row_has_a_grid_of_its_own(dtype: torch.dtype) -> None:
    weight = matrix()
    found = rounded_rows(weight, dtype)
    assert found.codes.dtype == torch.int8
    assert (found.scales.shape, found.scales.dtype) == ((50, 1), dtype)
    exact = found.codes.double() * found.scales.double()
    assert torch.equal(multiplied_out(found, torch.float32), exact.float())
    step = weight.double().abs().amax(1, keepdim=True) / 127  # the largest weight fits with it
    least = torch.finfo(dtype).tiny
    assert ((exact - weight).norm(dim=1) <= (step.clamp_min(least) / 2 * 96**0.5)[:, 0]).all()
    assert not exact[[0, 7]].any()


def test_slices_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = matrix()
    whole = rounded_rows(weight, torch.bfloat16)
    monkeypatch.setattr(embeddings, "SLICE_BYTES", 4 * 96 * 7)
    sliced = rounded_rows(weight, torch.bfloat16)
    assert torch.equal(sliced.codes, whole.codes)
    assert torch.equal(sliced.scales, whole.scales)
    dense = multiplied_out(sliced, torch.bfloat16)
    assert torch.equal(dense, whole.dequantized(torch.bfloat16))


TIED = (VocabularyMatrix((EMBEDDING, "lm_head"), 258, 32),)
SCALED = (
    VocabularyMatrix((EMBEDDING, "lm_head"), 258, 32, ((f"{EMBEDDING}.embed_scale", 32**0.5),)),
)
UNTIED = (VocabularyMatrix((EMBEDDING,), 258, 32), VocabularyMatrix(("lm_head",), 258, 32))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (tiny_llama_config(), TIED),
        (tiny_llama_config(tie_word_embeddings=False), UNTIED),
        (ARCHITECTURES["gemma2"], SCALED),
        (ARCHITECTURES["gemma3"], SCALED),
        (
            ARCHITECTURES["opt"],
            (VocabularyMatrix(("model.decoder.embed_tokens", "lm_head"), 258, 32),),
        ),
    ],
    ids=["tied", "untied", "gemma2", "gemma3", "opt"],
)
def test_what_a_model_has(config: Any, expected: tuple[VocabularyMatrix, ...]) -> None:
    found = vocabulary_matrices(tiny_model(config))
    assert [each.modules for each in found] == [each.modules for each in expected]
    assert [(each.rows, each.columns) for each in found] == [(258, 32)] * len(expected)
    for one, other in zip(found, expected, strict=True):
        assert dict(one.constants) == pytest.approx(dict(other.constants), rel=1e-7)


class Hashed(nn.Module):
    """An embedding of another kind."""


class Shifted(nn.Embedding):
    """An embedding that computes with a vector which no checkpoint has."""

    def __init__(self) -> None:
        super().__init__(258, 32)
        self.shift = nn.Buffer(torch.ones(32), persistent=False)


@pytest.mark.parametrize(
    ("place", "module", "says"),
    [
        (EMBEDDING, Hashed(), "model.embed_tokens is a Hashed, not an nn.Embedding"),
        ("lm_head", Hashed(), "lm_head is a Hashed, not an nn.Linear"),
        (EMBEDDING, Shifted(), r"computes with 'model\.embed_tokens\.shift'"),
    ],
)
def test_another_kind_is_refused_by_name(place: str, module: nn.Module, says: str) -> None:
    model = tiny_model(tiny_llama_config(tie_word_embeddings=False))
    model.set_submodule(place, module)
    with pytest.raises(UnsupportedLayer, match=says):
        vocabulary_matrices(model)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_a_model_has_the_weights_for_a_while(tied: bool) -> None:
    model = tiny_model(tiny_llama_config(tie_word_embeddings=tied))
    before = model(TOKENS).logits
    rounded = {
        each.name: rounded_rows(model.get_submodule(each.name).weight, torch.bfloat16)
        for each in vocabulary_matrices(model)
    }
    expected = tiny_model(tiny_llama_config(tie_word_embeddings=tied))
    for name, each in rounded.items():
        expected.get_submodule(name).weight.copy_(each.dequantized())
    with in_place(model, rounded):
        assert torch.equal(model(TOKENS).logits, expected(TOKENS).logits)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert torch.equal(model(TOKENS).logits, before)

"""Models of random weights in the shapes of real ones, whose blocks are made when they are needed.

Only torch and transformers are needed, so that it runs on a bare GPU machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from workers.compression.layers import compressible_layers, input_groups
from workers.compression.shapes import InputGroup
from workers.sweeps.passage import Passage

WEIGHT_DEVIATION = 0.02
META = torch.device("meta")


@dataclass(frozen=True)
class Shape:
    """A model's dimensions, the text for it, and its targets."""

    hidden: int
    intermediate: int
    heads: int
    key_value_heads: int
    blocks: int
    vocabulary: int
    sequences: int
    length: int
    peak_gib: float  # the target for the memory of the device
    device_gib: float  # for hidden states, by default
    host_gib: float


SHAPES = {
    "llama-7b": Shape(4096, 11_008, 32, 32, 32, 32_000, 128, 2048, 24, 12, 24),
    "llama-70b": Shape(8192, 28_672, 64, 8, 80, 32_000, 128, 2048, 60, 32, 64),
    "tiny": Shape(32, 80, 4, 2, 2, 128, 6, 32, 24, 1, 1),
}


@dataclass(frozen=True)
class RandomModel:
    """A model without its blocks' weights, and what gives them."""

    passage: Passage
    groups: tuple[InputGroup, ...]
    weights: RandomBlocks

    def groups_of(self, number: int) -> tuple[InputGroup, ...]:
        """The groups of layers in a block."""
        path = f"{self.passage.prefix}.{number}."
        return tuple(group for group in self.groups if group.name.startswith(path))


class RandomBlocks:
    """Gives a block weights that depend on its number alone, while it is held."""

    def __init__(self, passage: Passage) -> None:
        self._blocks = passage.blocks
        self._device = passage.device

    @contextmanager
    def hold(self, number: int, following: int | None = None) -> Iterator[nn.Module]:  # noqa: ARG002
        """The block, see `workers.sweeps.passage.BlockWeights`."""
        block = self._blocks[number]
        fill(block, self._device, seed=1 + number)
        try:
            yield block
        finally:
            block.to_empty(device=META)


def random_model(
    shape: Shape, blocks: int, dtype: torch.dtype, device: torch.device
) -> RandomModel:
    """A model of this shape, `blocks` deep; all but its blocks is on the device."""
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        num_hidden_layers=blocks,
        max_position_embeddings=shape.length,
        tie_word_embeddings=False,
    )
    with META:
        model: Any = LlamaForCausalLM(config).to(dtype)
    model.set_attn_implementation("eager")  # the only one that computes without values
    groups = input_groups(model, compressible_layers(model))
    model.set_attn_implementation("sdpa")
    for seed, module in enumerate((model.model.embed_tokens, model.model.norm, model.lm_head)):
        fill(module, device, seed=1_000_000 + seed)
    model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)
    passage = Passage(model)
    return RandomModel(passage, groups, RandomBlocks(passage))


def random_tokens(shape: Shape, sequences: int, length: int, batch_size: int) -> list[Tensor]:
    """Token ids, each (at most `batch_size`, length)."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(shape.vocabulary, (sequences, length), generator=generator)
    return list(torch.split(tokens, batch_size))


@torch.no_grad()
def fill(module: nn.Module, device: torch.device, seed: int) -> None:
    """Give a module of the meta device random matrices, and vectors of ones, as a norm has."""
    module.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, WEIGHT_DEVIATION, generator=generator)
        else:
            parameter.fill_(1)

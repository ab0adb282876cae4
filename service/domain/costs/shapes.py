"""What a config.json says about the shapes of a model's linear layers, without building the model.

The groups are those that `workers.model.blocks.traced_groups` finds. A configuration that does not
say what is needed, or is of another architecture, raises ShapesUnknown: nothing is guessed. A key
whose absence has a meaning in transformers, such as no bias, has that meaning here. It may be
anybody's: whatever it says, reading it takes little time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from service.printable import shortened

MAX_BLOCKS = 1000
"""The largest models have some hundred."""
MAX_NUMBER = 2**31
"""Of a side, a count or a vocabulary: far beyond any model, and products of it can be printed."""

NUMBER_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class ShapesUnknown(ValueError):
    """The configuration does not say which shapes its model has."""


@dataclass(frozen=True)
class Linear:
    """The shape of a linear layer."""

    outputs: int
    inputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        return self.outputs * self.inputs

    @property
    def parameters(self) -> int:
        return self.weights + self.outputs * self.bias

    @property
    def smaller_side(self) -> int:
        return min(self.outputs, self.inputs)


@dataclass(frozen=True)
class Group:
    """Layers with the same input. The experts of a block are equal groups, told once."""

    layers: tuple[Linear, ...]
    copies: int = 1
    active: int = 1  # how many of the copies a token goes through

    @property
    def inputs(self) -> int:
        return self.layers[0].inputs

    @property
    def weights(self) -> int:
        """Of one copy."""
        return sum(layer.weights for layer in self.layers)

    @property
    def keeps_outputs(self) -> bool:
        """Whether the outputs' second moments are smaller than the input's."""
        return sum(layer.outputs**2 for layer in self.layers) < self.inputs**2


@dataclass(frozen=True)
class Block:
    """One transformer block; `norms` and `router` are numbers of parameters."""

    groups: tuple[Group, ...]
    norms: int
    router: int
    heads: int
    query_width: int  # of a head's query and key
    value_width: int

    @cached_property
    def linear(self) -> int:
        """The parameters of the layers that can be compressed."""
        return sum(each.copies * sum(la.parameters for la in each.layers) for each in self.groups)

    @property
    def parameters(self) -> int:
        return self.linear + self.norms + self.router


@dataclass(frozen=True)
class Model:
    """A causal language model; `outside` is the number of parameters outside its blocks."""

    blocks: tuple[Block, ...]
    hidden: int
    vocabulary: int
    outside: int
    dtype: str  # of the checkpoint

    @property
    def stored_bytes(self) -> int:
        """Of one number in the checkpoint."""
        return NUMBER_BYTES[self.dtype]

    @property
    def in_vocabulary(self) -> int:
        """The parameters of the embedding and the output layer: beside them is one norm."""
        return self.outside - self.hidden

    @cached_property
    def linear(self) -> int:
        return sum(block.linear for block in self.blocks)

    @cached_property
    def inside(self) -> int:
        """The parameters of the blocks."""
        return sum(block.parameters for block in self.blocks)

    @cached_property
    def parameters(self) -> int:
        return self.outside + self.inside


@dataclass(frozen=True)
class _Family:
    """How the models of one `model_type` differ from Llama."""

    attention_bias: bool = False  # whether the key `attention_bias` is read
    mlp_bias: bool = False  # whether the key `mlp_bias` is read
    input_bias: bool = False  # whether q, k and v always have biases
    block_norms: int = 2
    head_norms: bool = False  # of the queries and the keys
    head_dim_required: bool = False  # otherwise hidden_size / num_attention_heads by default
    fused: bool = False  # q, k and v are one layer, and so are gate and up
    latent: bool = False  # keys and values of all heads come from one small vector
    tied: bool = False  # the default of `tie_word_embeddings`


_FAMILIES = {
    "llama": _Family(attention_bias=True, mlp_bias=True),
    "mistral": _Family(),
    "mixtral": _Family(),
    "qwen2": _Family(input_bias=True),
    "qwen3": _Family(attention_bias=True, head_norms=True, head_dim_required=True),
    "qwen3_moe": _Family(attention_bias=True, head_norms=True),
    "gemma2": _Family(attention_bias=True, block_norms=4, head_dim_required=True, tied=True),
    "gemma3_text": _Family(
        attention_bias=True, block_norms=4, head_norms=True, head_dim_required=True, tied=True
    ),
    "phi3": _Family(fused=True),
    "deepseek_v3": _Family(attention_bias=True, latent=True),
}


def model_shapes(config: Mapping[str, Any]) -> Model:
    """The shapes of the model of a config.json. Raises ShapesUnknown."""
    return _Reader(config).model()


class _Reader:
    """Reads one configuration."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config
        kind = config.get("model_type")
        if not isinstance(kind, str) or kind not in _FAMILIES:
            known = ", ".join(_FAMILIES)
            said = shortened(repr(kind))
            raise ShapesUnknown(f"the shapes of model_type {said} are not known, only: {known}")
        self._kind, self._family = kind, _FAMILIES[kind]
        self._hidden = self._number("hidden_size")
        self._heads = self._number("num_attention_heads")

    def model(self) -> Model:
        vocabulary = self._number("vocab_size")
        tied = self._config.get("tie_word_embeddings", self._family.tied)
        dtype = self._config.get("dtype") or self._config.get("torch_dtype")
        if not isinstance(dtype, str) or dtype not in NUMBER_BYTES:
            said = shortened(repr(dtype))
            raise ShapesUnknown(f"config.json has the 'dtype' {said}: no precision is known")
        attention = self._latent_attention() if self._family.latent else self._attention()
        sparse = self._sparse()
        kinds = {each: self._block(attention, sparse=each) for each in set(sparse)}
        return Model(
            tuple(kinds[each] for each in sparse),
            self._hidden,
            vocabulary,
            self._hidden * (vocabulary * (1 if tied else 2) + 1),
            dtype,
        )

    def _block(self, attention: Block, *, sparse: bool) -> Block:
        """A whole block, from one that has the attention only."""
        if not sparse:
            mlp, router = self._mlp(self._number("intermediate_size")), 0
        else:
            experts = self._number("n_routed_experts", "num_local_experts", "num_experts")
            mlp, router = self._experts(experts), experts * self._hidden
        norms = attention.norms + self._family.block_norms * self._hidden
        return Block(
            attention.groups + mlp,
            norms,
            router,
            self._heads,
            attention.query_width,
            attention.value_width,
        )

    def _attention(self) -> Block:
        if self._family.head_dim_required or self._config.get("head_dim") is not None:
            width = self._number("head_dim")
        else:
            width = max(1, self._hidden // self._heads)
        queries = self._heads * width
        keys = self._number("num_key_value_heads") * width
        bias = self._family.input_bias or self._attention_bias
        parts = [queries + 2 * keys] if self._family.fused else [queries, keys, keys]
        taken = Group(tuple(Linear(part, self._hidden, bias) for part in parts))
        norms = 2 * width if self._family.head_norms else 0
        return Block((taken, self._output(queries)), norms, 0, self._heads, width, width)

    def _latent_attention(self) -> Block:
        """DeepSeek's: queries, and keys with values, pass through a narrow layer each."""
        ranks = self._number("q_lora_rank"), self._number("kv_lora_rank")
        rotary, plain = self._number("qk_rope_head_dim"), self._number("qk_nope_head_dim")
        values, bias = self._number("v_head_dim"), self._attention_bias
        groups = (
            Group(tuple(Linear(n, self._hidden, bias) for n in (ranks[0], ranks[1] + rotary))),
            Group((Linear(self._heads * (plain + rotary), ranks[0]),)),
            Group((Linear(self._heads * (plain + values), ranks[1]),)),
            self._output(self._heads * values),
        )
        return Block(groups, sum(ranks), 0, self._heads, plain + rotary, values)

    def _output(self, width: int) -> Group:
        return Group((Linear(self._hidden, width, self._attention_bias),))

    def _mlp(self, width: int) -> tuple[Group, ...]:
        bias = self._family.mlp_bias and bool(self._config.get("mlp_bias"))
        parts = [2 * width] if self._family.fused else [width, width]
        return (
            Group(tuple(Linear(part, self._hidden, bias) for part in parts)),
            Group((Linear(self._hidden, width, bias),)),
        )

    def _experts(self, experts: int) -> tuple[Group, ...]:
        """The routed experts, each with gate and up as one layer, and the shared ones as one."""
        mixtral = self._kind == "mixtral"
        width = self._number("intermediate_size" if mixtral else "moe_intermediate_size")
        active = min(experts, self._number("num_experts_per_tok"))
        routed = (
            Group((Linear(2 * width, self._hidden),), experts, active),
            Group((Linear(self._hidden, width),), experts, active),
        )
        shared = self._number("n_shared_experts") if self._family.latent else 0
        return routed + (self._mlp(shared * width) if shared else ())

    def _sparse(self) -> list[bool]:
        """By block: whether it is a mixture of experts."""
        if (blocks := self._number("num_hidden_layers")) > MAX_BLOCKS:
            raise ShapesUnknown(f"config.json says {blocks} blocks; more than {MAX_BLOCKS}")
        numbers = range(blocks)
        match self._kind:
            case "mixtral":
                return [True for _ in numbers]
            case "deepseek_v3":
                first = self._number("first_k_dense_replace", least=0)
                return [number >= first for number in numbers]
            case "qwen3_moe":
                listed = self._config.get("mlp_only_layers")
                step = self._number("decoder_sparse_step")
                dense = {n for n in listed if type(n) is int} if isinstance(listed, list) else ()
                return [n not in dense and (n + 1) % step == 0 for n in numbers]
        return [False for _ in numbers]

    @property
    def _attention_bias(self) -> bool:
        return self._family.attention_bias and bool(self._config.get("attention_bias"))

    def _number(self, *names: str, least: int = 1) -> int:
        """The value of the first of these keys that is there. Raises ShapesUnknown."""
        for name in names:
            value = self._config.get(name)
            if type(value) is int and least <= value <= MAX_NUMBER:
                return value
        raise ShapesUnknown(
            f"config.json does not say '{names[0]}' as a number from {least} to {MAX_NUMBER}"
        )

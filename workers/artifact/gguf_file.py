"""Turns an artifact into a GGUF file, for llama.cpp.

    python -m workers.artifact.gguf_file ARTIFACT FILE

Layers of low rank are multiplied out, as in `workers.artifact.expand`. Layers of integers stay
integers, in blocks that stand for exactly the same weights. What GGUF or llama.cpp has no place for
is refused before anything is written. One tensor at a time is in memory, and the file appears when
it is complete.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import numpy as np
import torch
from gguf import MODEL_ARCH, GGUFWriter, LlamaFileType
from gguf import GGMLQuantizationType as Kind
from numpy.typing import NDArray
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from service.errors import EigenpressError
from workers.artifact.expand import (
    CannotExpand,
    DenseTensors,
    artifact_config,
    base_reader,
    dense_config,
    empty_model,
    own_tensors,
    with_biases,
)
from workers.artifact.gguf_blocks import block_kind, blocks, fits_half, has_blocks, used_scales
from workers.artifact.gguf_tokenizer import Vocabulary, read_vocabulary
from workers.compression.rounding.grid import RoundedWeight

ARCHITECTURES = {
    "LlamaForCausalLM": MODEL_ARCH.LLAMA,
    "MistralForCausalLM": MODEL_ARCH.LLAMA,
    "Qwen2ForCausalLM": MODEL_ARCH.QWEN2,
    "Qwen3ForCausalLM": MODEL_ARCH.QWEN3,
}

DENSE_KINDS = {torch.bfloat16: Kind.BF16, torch.float16: Kind.F16, torch.float32: Kind.F32}

FILE_TYPES = {
    Kind.BF16: LlamaFileType.MOSTLY_BF16,
    Kind.F16: LlamaFileType.MOSTLY_F16,
    Kind.F32: LlamaFileType.ALL_F32,
    Kind.Q4_0: LlamaFileType.MOSTLY_Q4_0,
    Kind.Q5_0: LlamaFileType.MOSTLY_Q5_0,
    Kind.Q8_0: LlamaFileType.MOSTLY_Q8_0,
}
"""What a file is called whose weights are mostly of this kind."""

ROPE_FREQUENCIES = "rope_freqs.weight"

WAY_OUT = (
    "leave out --gguf, and convert the folder with llama.cpp's convert_hf_to_gguf.py, if it knows "
    "this model"
)

WITHOUT_BIASES = "compress with a method without biases, such as 'svd-llm', or in bits"


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the file, and how to get its data."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    data: Callable[[], NDArray[Any]]

    @property
    def nbytes(self) -> int:
        return prod(gguf.quant_shape_to_byte_shape(self.shape, self.kind))


def write_gguf(artifact: Path, file: Path) -> list[str]:
    """Write the artifact's model and tokenizer as `file`, which must not exist yet.

    Returns what a user should know of it. Raises CannotExpand if `artifact` is not an artifact or
    cannot be a GGUF file, ArtifactCorrupt if a part of it is missing, and ModelInvalid if its
    tokenizer cannot be read.
    """
    config = artifact_config(artifact)
    if file.exists():
        raise CannotExpand(f"{file} exists already; name a new file")
    base_config = dense_config(config)
    (architecture,) = base_config["architectures"]
    if architecture not in ARCHITECTURES:
        raise CannotExpand(
            f"a GGUF file can be written of {', '.join(ARCHITECTURES)}, and this is a "
            f"{architecture}: {WAY_OUT}"
        )
    dense = DenseTensors(artifact, config)
    switched = with_biases(base_config, dense.biased)
    if switched is None:
        base = empty_model(base_config)
        homeless = sorted(name for name in dense.biased if base.get_submodule(name).bias is None)
        raise CannotExpand(
            f"{len(homeless)} layers, such as {homeless[0]}, have biases for which {architecture} "
            f"has no place: {WITHOUT_BIASES}"
        )
    model = empty_model(switched)
    _check(model.config)
    vocabulary = read_vocabulary(artifact, model.config.vocab_size)
    plan = _Plan(dense, model, base_reader(dense, base_config, model), ARCHITECTURES[architecture])
    tensors = list(plan)
    writer = GGUFWriter(None, gguf.MODEL_ARCH_NAMES[plan.architecture])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(artifact.resolve().name)
    writer.add_file_type(_file_type(tensors))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_parameters(writer, model.config)
    vocabulary.add_to(writer)
    _write(writer, tensors, file)
    return list(_notes(plan, model.config, vocabulary, dense.unread_names))


def _check(config: Any) -> None:
    """Raise CannotExpand if llama.cpp would compute something else."""
    rope = config.rope_parameters
    scaling, part = rope["rope_type"], rope.get("partial_rotary_factor", 1.0)
    known = [
        "default",
        "linear",
        *(["llama3"] if config.model_type in ("llama", "mistral") else []),
    ]
    if scaling not in known:
        raise CannotExpand(f"the model scales rotary positions by '{scaling}': {WAY_OUT}")
    if part != 1.0:
        raise CannotExpand(f"'partial_rotary_factor' is {part}: {WAY_OUT}")
    if config.hidden_act != "silu":
        raise CannotExpand(f"'hidden_act' is '{config.hidden_act}', not 'silu': {WAY_OUT}")
    if config.model_type == "qwen3" and config.attention_bias:
        raise CannotExpand(
            f"llama.cpp has no place for attention biases in a Qwen3: {WITHOUT_BIASES}"
        )


class _Plan:
    """The tensors of the file, whose data are read one at a time."""

    def __init__(
        self,
        dense: DenseTensors,
        model: Any,
        read: Callable[[str, Tensor], Tensor],
        architecture: MODEL_ARCH,
    ) -> None:
        self._dense, self._model, self._read = dense, model, read
        self.architecture = architecture
        self._dtype: torch.dtype = model.config.dtype
        self._names = gguf.get_tensor_name_map(architecture, model.config.num_hidden_layers)
        self.without_blocks: list[str] = []  # layers of integers that are stored dense

    def __iter__(self) -> Iterator[_Tensor]:
        factors = _frequency_factors(self._model.config)
        if factors is not None:
            yield _Tensor(ROPE_FREQUENCIES, factors.shape, Kind.F32, lambda: factors)
        for key, like in own_tensors(self._model).items():
            name = self._names.get_name(key, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise CannotExpand(f"GGUF has no name for the tensor '{key}': {WAY_OUT}")
            layer = key.removesuffix(".weight")
            order = self._order(key, len(like))
            if layer != key and layer in self._dense.rounded:
                if self._has_blocks(layer, like.shape[1]):
                    kind = block_kind(self._dense.rounded[layer])
                    data = partial(self._blocks, layer, order)
                    yield _Tensor(name, tuple(like.shape), kind, data)
                    continue
                self.without_blocks.append(layer)
            kind = Kind.F32 if like.ndim == 1 else DENSE_KINDS[self._dtype]
            yield _Tensor(name, tuple(like.shape), kind, partial(self._weights, key, like, order))

    def _order(self, key: str, rows: int) -> Tensor | None:
        """The order of a tensor's rows in the file, (out,); None if it stays.

        For a Llama GGUF has the two numbers that are rotated together side by side, not half a head
        apart.
        """
        config = self._model.config
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        count = heads.get(key.split(".")[-2])
        if self.architecture != MODEL_ARCH.LLAMA or count is None:
            return None
        return torch.arange(rows).view(count, 2, -1).transpose(1, 2).flatten()

    def _has_blocks(self, layer: str, inputs: int) -> bool:
        scales = self._dense.read_scales(layer)
        return has_blocks(inputs, scales) and (
            fits_half(scales) or fits_half(used_scales(self._dense.read_rounded(layer)))
        )

    def _blocks(self, layer: str, order: Tensor | None) -> NDArray[Any]:
        rounded = self._dense.read_rounded(layer)
        if order is not None:
            rounded = RoundedWeight(rounded.width, rounded.codes[order], rounded.scales[order])
        return blocks(rounded)

    def _weights(self, key: str, like: Tensor, order: Tensor | None) -> NDArray[Any]:
        tensor = self._read(key, like)
        if order is not None:
            tensor = tensor[order]
        tensor = tensor.float() if like.ndim == 1 else tensor.to(self._dtype)
        return tensor.contiguous().view(torch.uint8).numpy()


def _frequency_factors(config: Any) -> NDArray[np.float32] | None:
    """By what Llama 3 divides the frequencies of rotary positions, (head size / 2,)."""
    rope = config.rope_parameters
    if rope["rope_type"] != "llama3":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = rope["rope_theta"] ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
    factors: NDArray[np.float32] = (plain / scaled).float().numpy()
    return factors


def _file_type(tensors: list[_Tensor]) -> LlamaFileType:
    counts = Counter[Kind]()
    for tensor in tensors:
        if tensor.name.startswith("blk."):
            counts[tensor.kind] += prod(tensor.shape)
    return FILE_TYPES[counts.most_common(1)[0][0]]


def _add_parameters(writer: GGUFWriter, config: Any) -> None:
    size = config.hidden_size // config.num_attention_heads
    size = getattr(config, "head_dim", None) or size
    rope = config.rope_parameters
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def _write(writer: GGUFWriter, tensors: list[_Tensor], file: Path) -> None:
    """Write the file under another name, and rename it when it is complete."""
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.kind
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        writer.write_header_to_file(Path(folder) / file.name)
        try:
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for tensor in tensors:
                writer.write_tensor_data(tensor.data())
        finally:
            writer.close()
        (Path(folder) / file.name).rename(file)


def _notes(plan: _Plan, config: Any, vocabulary: Vocabulary, unread: list[str]) -> Iterator[str]:
    if plan.without_blocks:
        yield (
            f"{len(plan.without_blocks)} layers of integers, such as {plan.without_blocks[0]}, are "
            "dense in the file: its blocks need groups of 32 inputs and scales that float16 holds, "
            "as it holds most of those of a job in bfloat16."
        )
    window = getattr(config, "sliding_window", None)
    if window is not None and window < config.max_position_embeddings:
        yield (
            f"Each token of the model sees the last {window} tokens. llama.cpp has no such window "
            "for it, and computes something else for longer texts."
        )
    yield from vocabulary.notes
    if unread:
        yield (
            f"{len(unread)} tensors that the model does not use, such as {unread[0]}, are left out."
        )


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m workers.artifact.gguf_file ARTIFACT FILE", file=sys.stderr)
        return 2
    try:
        notes = write_gguf(Path(arguments[0]), Path(arguments[1]))
    except (EigenpressError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    for note in notes:
        print(note)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

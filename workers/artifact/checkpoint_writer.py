"""Writes a compressed checkpoint: streams the source's safetensors, putting other layers in.

Only one of the model's parameters is in memory, and what is made of it. The folder holds what
`AutoModelForCausalLM` needs and nothing that is pickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from service.domain.costs.sizes import sides_unreachable, stored_together
from service.domain.spec.job import JobSpec
from service.domain.spec.targets import SIDES, SizeTarget, rounds_embeddings
from service.errors import ModelInvalid, NotACausalLM, TargetUnreachable
from service.inputs.models.files import is_companion, model_paths
from workers.artifact import integers
from workers.artifact.safetensors_file import WrittenTensor, write_safetensors
from workers.artifact.size import CheckpointSize
from workers.compression import checkpoint
from workers.compression.candidates import Forms, Width, rank_of
from workers.compression.checkpoint import BaseClasses, Replacement
from workers.compression.errors import UnsupportedLayer
from workers.compression.rounding.grid import RoundedWeight
from workers.compression.shapes import LinearLayer, VocabularyMatrix
from workers.model.blocks import vocabulary
from workers.model.configuration import without_kernels
from workers.model.tensor_names import source_tensors
from workers.model.unused_tensors import UnusedTensors

MAX_SHARD_BYTES = 2 << 30

Compressed = Callable[[Sequence[str]], Iterable[Replacement]]
"""A function from layer names, in the order of a checkpoint, to the layers' replacements."""


def check_writable(source: Path) -> UnusedTensors:
    """Check that `write_checkpoint` can write this model, before a job spends hours on it.

    Returns what becomes of tensors that the model does not use. Raises the errors of
    `workers.model.tensor_names.source_tensors` and of its `check_copies`, ModelInvalid if
    transformers does not export the model's classes, and NotACausalLM.
    """
    tensors = source_tensors(source)
    tensors.check_copies()
    base_classes(json.loads((source / "config.json").read_text("utf-8")))
    return tensors.unused


def check_roundable(
    source: Path, spec: JobSpec, layers: Sequence[LinearLayer]
) -> tuple[VocabularyMatrix, ...]:
    """Check that the layers of this model can be stored as integers, if a target wants that.

    Returns the weights of embedding and output layer if a target rounds them. Raises
    TargetUnreachable, which names the target.
    """
    wanting = {
        f"targets.{number}.precisions": target.precisions
        for number, target in enumerate(spec.targets)
        if not isinstance(target, SizeTarget) and target.precisions is not None
    }
    if wanting and source_tensors(source).unfused:
        raise stored_together(next(iter(wanting)))
    for param, precisions in wanting.items():
        side = SIDES.get(precisions, 1)
        for layer in layers:
            if layer.in_features % side or layer.out_features % side:
                name, inputs, outputs = layer.name, layer.in_features, layer.out_features
                raise sides_unreachable(precisions, f"'{name}'", inputs, outputs, param)
    for number, target in enumerate(spec.targets):
        if rounds_embeddings(target):
            try:
                return vocabulary(source)
            except UnsupportedLayer as error:
                raise TargetUnreachable(
                    f"The embedding and the output layer cannot be stored as integers: {error}. "
                    "Leave 'embedding_bits' at 16.",
                    param=f"targets.{number}.embedding_bits",
                ) from error
    return ()


def write_checkpoint(
    source: Path,
    folder: Path,
    forms: Forms,
    compressed: Compressed,
    dtype: torch.dtype,
    vocabulary: Sequence[VocabularyMatrix] = (),
) -> CheckpointSize:
    """Write a checkpoint in which `compressed` replaces every layer named in `forms`.

    `vocabulary` has at least those of them that are the embedding or the output layer. Tensors that
    the model does not use do not count as its parameters, and a rounded weight counts as a dense
    one. Raises the errors of
    `workers.model.tensor_names.source_tensors`, and ModelInvalid for numbers that are not finite in
    `dtype`.
    """
    tensors = source_tensors(source)
    folder.mkdir(parents=True)
    order = [
        layer
        for piece in tensors
        for layer, _, parameter in (name.rpartition(".") for name in piece.names)
        if layer in forms and parameter == "weight"
    ]
    replacements = _Replacements(compressed(order), vocabulary)

    def stream() -> Iterator[tuple[str, Tensor]]:
        for piece in tensors:
            read: Mapping[str, Tensor] | None = None
            for name in piece.names:
                layer, _, parameter = name.rpartition(".")
                if layer in forms and parameter == "weight":
                    for key, tensor in replacements.tensors(layer):
                        yield key, _cast(key, tensor, dtype)
                elif rank_of(forms.get(layer)) is None:  # a low rank has brought its own bias
                    read = piece.read() if read is None else read
                    yield name, _cast(name, read[name], dtype)
        for key, tensor in tensors.carried():
            yield key, _cast(key, tensor, dtype)
        yield from replacements.constants()

    size = write_shards(stream(), folder)
    parameters = size.parameters + replacements.uncounted - tensors.carried_numbers
    _write_configuration(source, folder, replacements, dtype, unfused=tensors.unfused)
    copy_companions(source, folder)
    return replace(size, parameters=parameters)


class _Replacements:
    """The replacements of layers as they are written, and what the configuration says of them."""

    def __init__(
        self, replacements: Iterable[Replacement], vocabulary: Sequence[VocabularyMatrix]
    ) -> None:
        self._replacements = iter(replacements)
        self._matrices = {matrix.name: matrix for matrix in vocabulary}
        self.low_rank: dict[str, tuple[int, bool]] = {}  # rank, and whether it has a bias
        self.rounded: dict[str, tuple[Width, int]] = {}  # width, and the number of inputs
        self.vocabulary: dict[str, Width] = {}  # of each module of a rounded matrix
        self.uncounted = 0  # parameters beyond the numbers of their tensors

    def tensors(self, layer: str) -> Iterator[tuple[str, Tensor]]:
        """The tensors of the next replacement, which is that of this layer."""
        replacement = next(self._replacements)
        if not isinstance(replacement, RoundedWeight):
            self.low_rank[layer] = replacement.rank, replacement.bias is not None
            yield from checkpoint.tensors(layer, replacement)
            return
        if matrix := self._matrices.get(layer):
            self.vocabulary |= dict.fromkeys(matrix.modules, replacement.width)
            stored = integers.vocabulary_tensors(matrix, replacement)
        else:
            self.rounded[layer] = replacement.width, replacement.codes.shape[1]
            stored = integers.integer_tensors(layer, replacement)
        self.uncounted += replacement.codes.numel()
        for key, tensor in stored:
            self.uncounted -= tensor.numel()
            yield key, tensor

    def constants(self) -> Iterator[tuple[str, Tensor]]:
        """What else a loader needs for the rounded matrices; in float32, as the model has it."""
        for name, matrix in self._matrices.items():
            for key, value in matrix.constants if name in self.vocabulary else ():
                self.uncounted -= 1
                yield key, torch.tensor(value, dtype=torch.float32)


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in the artifact's precision; integers stay as they are.

    Raises ModelInvalid, which names the tensor, unless every number is finite.
    """
    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(dtype)
    if not _is_finite(cast):
        if not _is_finite(tensor):
            raise ModelInvalid(f"the tensor '{name}' is not finite", param="model")
        raise ModelInvalid(
            f"the tensor '{name}' has values up to {tensor.abs().max():.3g}, which {dtype} cannot "
            "hold: choose bfloat16 or float32",
            param="dtype",
        )
    return cast


def _is_finite(tensor: Tensor) -> bool:
    """Whether every number is finite, found in no more memory."""
    return not tensor.numel() or all(extreme.isfinite() for extreme in tensor.aminmax())


def copy_companions(source: Path, folder: Path) -> None:
    """Copy the other files that belong to a model: tokenizer, chat templates, licences.

    The tokenizer's reference to Python code of its own is left out: whoever loads an artifact
    trusts the artifact's code, not the source's.
    """
    for file in model_paths(source):
        path = file.relative_to(source)
        if is_companion(path.as_posix()) and file.is_file():
            (folder / path).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, folder / path)
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.exists():
        config = json.loads(tokenizer.read_text("utf-8"))
        if config.pop("auto_map", None):
            write_json(tokenizer, config)


def write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path) -> CheckpointSize:
    """Write shards of at most MAX_SHARD_BYTES (or one tensor), and their index if several.

    The names must be distinct. One tensor at a time is taken from `tensors`, and none is kept.
    """
    shards = [
        write_safetensors(folder / _part(number), shard)
        for number, shard in groupby(tensors, key=_shard_numbers())
    ]
    _name_shards(folder, shards)
    return CheckpointSize(
        sum(tensor.numbers for shard in shards for tensor in shard),
        sum(file.stat().st_size for file in folder.glob("*.safetensors")),
    )


def _shard_numbers() -> Callable[[tuple[str, Tensor]], int]:
    """A function that says in which shard the next tensor of a stream goes."""
    number = shard_bytes = 0

    def number_of(named: tuple[str, Tensor]) -> int:
        nonlocal number, shard_bytes
        _, tensor = named
        if shard_bytes and shard_bytes + tensor.nbytes > MAX_SHARD_BYTES:
            number, shard_bytes = number + 1, 0
        shard_bytes += tensor.nbytes
        return number

    return number_of


def _part(number: int) -> str:
    """The name of a shard before their number is known."""
    return f"part-{number}.safetensors"


def _name_shards(folder: Path, shards: Sequence[Sequence[WrittenTensor]]) -> None:
    if len(shards) == 1:
        (folder / _part(0)).rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / _part(number)).rename(folder / name)
        weight_map |= {tensor.name: name for tensor in shard}
    total_bytes = sum(tensor.nbytes for shard in shards for tensor in shard)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def _write_configuration(
    source: Path,
    folder: Path,
    replacements: _Replacements,
    dtype: torch.dtype,
    *,
    unfused: bool,
) -> None:
    config = without_kernels(json.loads((source / "config.json").read_text("utf-8")))
    config.pop("torch_dtype", None)  # the name that older checkpoints give it
    config["dtype"] = str(dtype).removeprefix("torch.")
    base = base_classes(config)
    has_integers = bool(replacements.rounded or replacements.vocabulary)
    if has_integers:
        config[integers.CONFIG_KEY] = integers.quantization_config(
            replacements.rounded, replacements.vocabulary
        )
    if has_integers and not replacements.low_rank:  # any loader can read it
        config = checkpoint.marked_config(config, base, {})
    else:
        config = checkpoint.compressed_config(config, base, replacements.low_rank)
        write_modeling(folder, base, unfused=unfused)
    write_json(folder / "config.json", config)


def write_modeling(folder: Path, base: BaseClasses, *, unfused: bool) -> None:
    """Write the modelling file; see `workers.compression.checkpoint.modeling_source`."""
    text = checkpoint.modeling_source(base, unfused=unfused)
    (folder / f"{checkpoint.MODELING_MODULE}.py").write_text(text, "utf-8")


def base_classes(config: Mapping[str, Any]) -> BaseClasses:
    """The names of the model's classes, which transformers exports.

    Raises NotACausalLM, and ModelInvalid if it does not export them.
    """
    model_type = config["model_type"]
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if architecture is None:
        raise NotACausalLM(f"transformers knows no causal language model '{model_type}'")
    model = MODEL_MAPPING_NAMES.get(model_type)
    config_class = type(AutoConfig.for_model(model_type)).__name__
    names = BaseClasses(str(architecture), str(model), config_class)
    for name in names:
        if not hasattr(transformers, name):
            raise ModelInvalid(f"transformers does not export {name}", param="model")
    return names


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")

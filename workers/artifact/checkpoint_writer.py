"""Writes a compressed checkpoint: streams the source's safetensors, putting low-rank layers in.

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
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from service.errors import ModelInvalid, NotACausalLM
from service.inputs.models.files import is_companion, model_paths
from workers.artifact.safetensors_file import WrittenTensor, write_safetensors
from workers.artifact.size import CheckpointSize
from workers.compression import checkpoint
from workers.compression.interpolation import Interpolation
from workers.model.configuration import without_kernels
from workers.model.tensor_names import source_tensors
from workers.model.unused_tensors import UnusedTensors

MAX_SHARD_BYTES = 2 << 30

Compressed = Callable[[Sequence[str]], Iterable[Interpolation]]
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


def write_checkpoint(
    source: Path,
    folder: Path,
    ranks: Mapping[str, int],
    compressed: Compressed,
    dtype: torch.dtype,
) -> CheckpointSize:
    """Write a checkpoint in which `compressed` replaces every layer named in `ranks`.

    Tensors that the model does not use do not count as its parameters. Raises the errors of
    `workers.model.tensor_names.source_tensors`, and ModelInvalid for numbers that are not finite in
    `dtype`.
    """
    tensors = source_tensors(source)
    folder.mkdir(parents=True)
    biased: dict[str, bool] = {}
    order = [
        layer
        for piece in tensors
        for layer, _, parameter in (name.rpartition(".") for name in piece.names)
        if layer in ranks and parameter == "weight"
    ]
    replacements = iter(compressed(order))

    def stream() -> Iterator[tuple[str, Tensor]]:
        for piece in tensors:
            layers = {name: name.rpartition(".")[0] for name in piece.names}
            dense = {} if ranks.keys() >= set(layers.values()) else piece.read()
            for name, layer in layers.items():
                if layer not in ranks:
                    yield name, _cast(name, dense[name], dtype)
                elif name == f"{layer}.weight":
                    replacement = next(replacements)
                    biased[layer] = replacement.bias is not None
                    for key, factor in checkpoint.tensors(layer, replacement):
                        yield key, _cast(key, factor, dtype)
        for key, tensor in tensors.carried():
            yield key, _cast(key, tensor, dtype)

    size = write_shards(stream(), folder)
    size = replace(size, parameters=size.parameters - tensors.carried_numbers)
    layers = {name: (ranks[name], biased[name]) for name in ranks}
    _write_configuration(source, folder, layers, dtype, unfused=tensors.unfused)
    copy_companions(source, folder)
    return size


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
    layers: Mapping[str, tuple[int, bool]],
    dtype: torch.dtype,
    *,
    unfused: bool,
) -> None:
    config = without_kernels(json.loads((source / "config.json").read_text("utf-8")))
    config.pop("torch_dtype", None)  # the name that older checkpoints give it
    config["dtype"] = str(dtype).removeprefix("torch.")
    architecture, config_class = base_classes(config)
    compressed: dict[str, Any] = checkpoint.compressed_config(
        config, architecture, config_class, layers
    )
    write_json(folder / "config.json", compressed)
    write_modeling(folder, architecture, config_class, unfused=unfused)


def write_modeling(folder: Path, architecture: str, config_class: str, *, unfused: bool) -> None:
    """Write the modelling file; see `workers.compression.checkpoint.modeling_source`."""
    text = checkpoint.modeling_source(architecture, config_class, unfused=unfused)
    (folder / f"{checkpoint.MODELING_MODULE}.py").write_text(text, "utf-8")


def base_classes(config: Mapping[str, Any]) -> tuple[str, str]:
    """The names of the model's class and its configuration's, which transformers exports.

    Raises NotACausalLM, and ModelInvalid if it does not export them.
    """
    model_type = config["model_type"]
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if architecture is None:
        raise NotACausalLM(f"transformers knows no causal language model '{model_type}'")
    config_class = type(AutoConfig.for_model(model_type)).__name__
    for name in (architecture, config_class):
        if not hasattr(transformers, name):
            raise ModelInvalid(f"transformers does not export {name}", param="model")
    return str(architecture), config_class


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")

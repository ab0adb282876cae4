"""Writes a compressed checkpoint: streams the source's safetensors, putting low-rank layers in.

At most one output shard and one of the model's parameters are in memory. The folder holds what
`AutoModelForCausalLM` needs and nothing that is pickled.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from service.errors import ModelInvalid, NotACausalLM
from service.inputs.models.files import is_companion, model_paths
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
    `workers.model.tensor_names.source_tensors`, ModelInvalid if transformers does not export the
    model's classes, and NotACausalLM.
    """
    tensors = source_tensors(source)
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
    """A copy in the artifact's precision; integers stay as they are.

    It is a copy because a view of one expert would keep all of them in memory. Raises ModelInvalid,
    which names the tensor, unless every number is finite.
    """
    if not tensor.is_floating_point():
        return tensor.clone(memory_format=torch.contiguous_format)
    cast = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if not cast.isfinite().all():
        if not tensor.isfinite().all():
            raise ModelInvalid(f"the tensor '{name}' is not finite", param="model")
        raise ModelInvalid(
            f"the tensor '{name}' has values up to {tensor.abs().max():.3g}, which {dtype} cannot "
            "hold: choose bfloat16 or float32",
            param="dtype",
        )
    return cast


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


def write_shards(tensors: Iterator[tuple[str, Tensor]], folder: Path) -> CheckpointSize:
    """Write shards of at most MAX_SHARD_BYTES (or one tensor), and their index if several."""
    parts: list[dict[str, str]] = []  # per shard: tensor name -> temporary file name
    parameters = total_bytes = 0

    def write(shard: dict[str, Tensor]) -> None:
        name = f"part-{len(parts)}.safetensors"
        # One metadata key: safetensors orders several at random.
        save_file(shard, folder / name, metadata={"format": "pt"})
        parts.append(dict.fromkeys(shard, name))

    shard: dict[str, Tensor] = {}
    shard_bytes = 0
    for name, tensor in tensors:
        if shard and shard_bytes + tensor.nbytes > MAX_SHARD_BYTES:
            write(shard)
            shard, shard_bytes = {}, 0
        shard[name] = tensor.contiguous()
        shard_bytes += tensor.nbytes
        total_bytes += tensor.nbytes
        parameters += tensor.numel()
    write(shard)
    _name_shards(folder, parts, total_bytes)
    return CheckpointSize(
        parameters, sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    )


def _name_shards(folder: Path, parts: list[dict[str, str]], total_bytes: int) -> None:
    if len(parts) == 1:
        (folder / "part-0.safetensors").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts):
        name = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        (folder / f"part-{number}.safetensors").rename(folder / name)
        weight_map |= dict.fromkeys(part, name)
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

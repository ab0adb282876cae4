"""Rounded layers in a checkpoint, in the format of compressed-tensors.

transformers and vLLM read it (`pack-quantized`): each layer ``L.weight`` (out, in) is stored as
``L.weight_packed``, its codes as a stream of bits in words of 32; ``L.weight_scale`` (out, groups);
and ``L.weight_shape``. `config.json` says under `quantization_config` which layers have which
width. An artifact with no other change is an ordinary checkpoint that needs no code of ours.

A rounded embedding or output layer is stored as ``L.weight``, int8, and ``L.weight_scale``
(`naive-quantized`). So its codes have the name that transformers ties: tied ones are stored once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from workers.compression.candidates import Width
from workers.compression.rounding.grid import RoundedWeight, group_size
from workers.compression.shapes import VocabularyMatrix

CONFIG_KEY = "quantization_config"
PARTS = ("weight_packed", "weight_scale", "weight_shape")
SCALE = "weight_scale"
VOCABULARY_FORMAT = "naive-quantized"


def integer_tensors(name: str, rounded: RoundedWeight) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the rounded layer `name`, by their names in the checkpoint."""
    # This imports loguru and the whole library, which takes a second: most artifacts have none.
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    packed = pack_to_int32(rounded.codes, rounded.width.bits)
    parts = packed, rounded.scales, torch.tensor(rounded.codes.shape)
    for part, tensor in zip(PARTS, parts, strict=True):
        yield f"{name}.{part}", tensor


def vocabulary_tensors(
    matrix: VocabularyMatrix, rounded: RoundedWeight
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a rounded embedding or output layer, by their names in the checkpoint."""
    yield f"{matrix.name}.weight", rounded.codes
    for module in matrix.modules:
        yield f"{module}.{SCALE}", rounded.scales


def unpacked(packed: Tensor, scales: Tensor, shape: Tensor, width: Width) -> RoundedWeight:
    """The rounded weight that a layer's tensors hold."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    codes = unpack_from_int32(packed, width.bits, torch.Size(shape.tolist()))
    return RoundedWeight(width, codes, scales)


def quantization_config(
    layers: Mapping[str, tuple[Width, int]], vocabulary: Mapping[str, Width]
) -> dict[str, Any]:
    """What `config.json` says of rounded layers, given their widths and numbers of inputs.

    `vocabulary` are embedding and output layer, if they are rounded. What it does not name is
    dense.
    """
    schemes: dict[tuple[Width, int, bool], list[str]] = {}
    for name, (width, inputs) in layers.items():
        size = group_size(inputs)
        schemes.setdefault((width, size, size == inputs), []).append(name)
    groups = [
        {"targets": names, "weights": _weights(width, None if whole_row else size)}
        for (width, size, whole_row), names in sorted(schemes.items())
    ]
    groups += [
        {
            "targets": [name for name in vocabulary if vocabulary[name] == width],
            "weights": _weights(width, None),
            "format": VOCABULARY_FORMAT,
        }
        for width in sorted(set(vocabulary.values()))
    ]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {f"group_{number}": group for number, group in enumerate(groups)},
        "ignore": [],
    }


def _weights(width: Width, size: int | None) -> dict[str, Any]:
    """A group of weights; with `size` inputs to a scale, None: all of a row."""
    strategy = (
        {"strategy": "channel"} if size is None else {"strategy": "group", "group_size": size}
    )
    return {"num_bits": width.bits, "type": "int", "symmetric": True, **strategy}


def rounded_layers(config: Mapping[str, Any]) -> dict[str, Width]:
    """The layers with integers by `config.json`, as `quantization_config` has written it."""
    return _widths(config, None)


def rounded_vocabulary(config: Mapping[str, Any]) -> dict[str, Width]:
    """The same of embedding and output layer."""
    return _widths(config, VOCABULARY_FORMAT)


def _widths(config: Mapping[str, Any], stored_as: str | None) -> dict[str, Width]:
    groups = (config.get(CONFIG_KEY) or {}).get("config_groups", {}).values()
    return {
        name: Width(group["weights"]["num_bits"])
        for group in groups
        if group.get("format") == stored_as
        for name in group["targets"]
    }

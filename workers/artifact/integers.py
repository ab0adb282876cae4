"""Rounded layers in a checkpoint, in the format of compressed-tensors.

transformers and vLLM read it (`pack-quantized`): each layer ``L.weight`` (out, in) is stored as
``L.weight_packed``, its codes as a stream of bits in words of 32; ``L.weight_scale`` (out, groups);
and ``L.weight_shape``. `config.json` says under `quantization_config` which layers have which
width. An artifact with no other change is an ordinary checkpoint that needs no code of ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from workers.compression.candidates import Width
from workers.compression.rounding.grid import RoundedWeight, group_size

CONFIG_KEY = "quantization_config"
PARTS = ("weight_packed", "weight_scale", "weight_shape")


def integer_tensors(name: str, rounded: RoundedWeight) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the rounded layer `name`, by their names in the checkpoint."""
    # This imports loguru and the whole library, which takes a second: most artifacts have none.
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    packed = pack_to_int32(rounded.codes, rounded.width.bits)
    parts = packed, rounded.scales, torch.tensor(rounded.codes.shape)
    for part, tensor in zip(PARTS, parts, strict=True):
        yield f"{name}.{part}", tensor


def unpacked(packed: Tensor, scales: Tensor, shape: Tensor, width: Width) -> RoundedWeight:
    """The rounded weight that a layer's tensors hold."""
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    codes = unpack_from_int32(packed, width.bits, torch.Size(shape.tolist()))
    return RoundedWeight(width, codes, scales)


def quantization_config(layers: Mapping[str, tuple[Width, int]]) -> dict[str, Any]:
    """What `config.json` says of rounded layers, given their widths and numbers of inputs.

    Layers that it does not name are dense.
    """
    schemes: dict[tuple[Width, int, bool], list[str]] = {}
    for name, (width, inputs) in layers.items():
        size = group_size(inputs)
        schemes.setdefault((width, size, size == inputs), []).append(name)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{number}": {
                "targets": names,
                "weights": {
                    "num_bits": width.bits,
                    "type": "int",
                    "symmetric": True,
                    **(
                        {"strategy": "channel"}
                        if whole_row
                        else {"strategy": "group", "group_size": size}
                    ),
                },
            }
            for number, ((width, size, whole_row), names) in enumerate(sorted(schemes.items()))
        },
        "ignore": [],
    }


def rounded_layers(config: Mapping[str, Any]) -> dict[str, Width]:
    """The layers with integers by `config.json`, as `quantization_config` has written it."""
    groups = config.get(CONFIG_KEY, {}).get("config_groups", {}).values()
    return {
        name: Width(group["weights"]["num_bits"]) for group in groups for name in group["targets"]
    }

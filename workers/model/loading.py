"""Loads source models whole; GGUF files are converted first.

It refuses a model that transformers would complete with random weights.
"""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoModelForCausalLM

from service.domain.costs.shapes import Model, ShapesUnknown, model_shapes
from service.domain.manifest import sha256_of
from service.errors import ModelInvalid
from service.inputs.cache import cached
from service.inputs.models.files import CONFIG_NAME
from service.settings import Settings
from workers.model.configuration import load_configuration
from workers.model.gguf_conversion import PARAM, convert_gguf
from workers.model.model_errors import naming_model_errors
from workers.model.weight_files import weight_files

PRECISIONS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
"""What an artifact may be stored in, by the names of safetensors."""


SHARE_OF_GPU = 0.8
"""The part of a GPU's free memory that a model may fill, beside its activations."""


def prepare_model(path: Path, settings: Settings) -> Path:
    """Return a local Hugging Face folder with safetensors: `path`, or its GGUF file converted.

    A file is converted at most once per node. Raises the errors of
    `workers.model.gguf_conversion.convert_gguf`.
    """
    if path.is_dir():
        return path
    digest = sha256_of(path)
    return cached(settings, "gguf", digest, partial(_convert_copy, path, digest))


def _convert_copy(gguf: Path, digest: str, folder: Path) -> None:
    """Convert a GGUF file of this digest, by a copy: users may write into the file meanwhile.

    All users of the file's contents share the result. Raises ModelInvalid if the file has changed.
    """
    copy = folder / gguf.name
    shutil.copyfile(gguf, copy)
    if sha256_of(copy) != digest:
        raise ModelInvalid(f"{gguf.name} was changed while it was read.", param=PARAM)
    convert_gguf(copy, folder)
    copy.unlink()


def load_model(
    folder: Path,
    device: torch.device,
    *,
    trust_remote_code: bool = False,
    memory_bytes: int | None = None,
) -> Any:
    """The causal language model of a folder, ready for inference on `device`.

    It is in float32 on a CPU, and in the checkpoint's precision on a GPU. What fits neither on the
    GPU nor into `memory_bytes` of the host stays on the disk until it is needed (by accelerate).
    Raises NotACausalLM, and ModelInvalid if any weight is missing, cannot be read or is not finite.
    """
    dtype: torch.dtype | str = torch.float32 if device.type == "cpu" else "auto"
    with naming_model_errors("the model cannot be loaded"):
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            config=load_configuration(folder, trust_remote_code=trust_remote_code),
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **_placement(folder, device, memory_bytes),
        )
    _check_complete(loading)
    for name, parameter in model.named_parameters():
        if parameter.is_meta:  # on the disk
            continue
        if parameter.numel() and not torch.stack(parameter.aminmax()).isfinite().all():
            raise ModelInvalid(f"the tensor '{name}' is not finite", param="model")
    model.eval().requires_grad_(False)
    if not hasattr(model, "hf_device_map"):
        return model.to(device)
    if hasattr(model, "ct_decompress_hook"):  # it would take away accelerate's in a pass
        model.hf_quantizer.compressor.decompress_model(model)
    return model


def check_loads(folder: Path) -> None:
    """Have transformers go through the loading of a source model, without reading a weight.

    Raises the errors of `load_model`, except for numbers that are not finite.
    """
    with naming_model_errors("the model cannot be loaded"):
        _, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            config=load_configuration(folder),
            device_map={"": "meta"},
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    _check_complete(loading)


def _check_complete(loading: Mapping[str, Any]) -> None:
    """Raise ModelInvalid if any weight is missing."""
    missing = sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"]))
    if missing:
        raise ModelInvalid(
            f"{len(missing)} weights are missing or of the wrong shape, such as {missing[0]}",
            param="model",
        )


def _placement(folder: Path, device: torch.device, memory_bytes: int | None) -> Mapping[str, Any]:
    """Arguments of `from_pretrained` for a model that may exceed the memory.

    Integers grow when they become weights, after the layers have found their places.
    """
    if memory_bytes is None:
        return {}
    limits: dict[Any, int] = {"cpu": memory_bytes}
    first: Any = "cpu"
    if device.type == "cuda":
        first = device.index or 0
        limits[first] = int(torch.cuda.mem_get_info(device)[0] * SHARE_OF_GPU)
    floats = stored_dtypes(folder)
    size = floats.total() if device.type == "cuda" else 4 * _numbers(floats)
    codes, weights = _integers(folder)
    loaded, computing = size + codes, size + weights * (size // _numbers(floats))
    if computing <= limits[first]:
        return {}
    places = {place: limit * loaded // computing for place, limit in limits.items()}
    return {"device_map": "auto", "max_memory": places, "offload_folder": f"{folder}.offloaded"}


def _numbers(stored: Mapping[torch.dtype, int]) -> int:
    return sum(nbytes // dtype.itemsize for dtype, nbytes in stored.items())


def _integers(folder: Path) -> tuple[int, int]:
    """The bytes of an artifact's integers, and how many weights they stand for."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    groups = (config.get("quantization_config") or {}).get("config_groups", {}).values()
    bits = {name: each["weights"]["num_bits"] for each in groups for name in each["targets"]}
    codes = weights = 0
    for file in weight_files(folder) if bits else ():
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a mapping
                layer, _, part = key.rpartition(".")
                tensor = tensors.get_slice(key)
                numbers = math.prod(tensor.get_shape())
                if part == "weight_packed":
                    codes, weights = codes + 4 * numbers, weights + numbers * 32 // bits[layer]
                elif part == "weight" and layer in bits:
                    codes, weights = codes + numbers, weights + numbers
    return codes, weights


def vocabulary_size(folder: Path) -> int:
    """The number of token ids that the model of a folder has embeddings for."""
    with naming_model_errors("config.json cannot be read"):
        return int(load_configuration(folder).get_text_config().vocab_size)


def parameter_count(model: nn.Module) -> int:
    """The number of the model's parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def stored_dtypes(folder: Path) -> Counter[torch.dtype]:
    """The bytes that the checkpoint stores in each precision that an artifact may have.

    Raises ModelInvalid if there are none.
    """
    stored: Counter[torch.dtype] = Counter()
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a mapping
                tensor = tensors.get_slice(key)
                if dtype := PRECISIONS.get(tensor.get_dtype()):
                    stored[dtype] += math.prod(tensor.get_shape()) * dtype.itemsize
    if not stored:
        raise ModelInvalid(
            f"the checkpoint holds no weights in {', '.join(PRECISIONS)}", param="model"
        )
    return stored


def known_shapes(folder: Path) -> Model | None:
    """The shapes of the model for the cost model; None if that does not know the architecture."""
    config = json.loads((folder / CONFIG_NAME).read_bytes())
    dtype = str(stored_dtype(folder)).removeprefix("torch.")
    try:
        return model_shapes(config | {"dtype": dtype})
    except ShapesUnknown:
        return None


def stored_dtype(folder: Path) -> torch.dtype:
    """The precision of most of the checkpoint's bytes. Raises as `stored_dtypes` does."""
    ((dtype, _),) = stored_dtypes(folder).most_common(1)
    return dtype

"""Fetches source models on a worker, converts GGUF files, and loads the models whole.

It refuses a model that transformers would complete with random weights.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from service.domain.manifest import sha256_of
from service.domain.spec import ModelSource
from service.errors import ModelInvalid, NotACausalLM
from service.inputs.cache import cached
from service.inputs.sources import fetch_model
from service.settings import Settings
from workers.model.weight_files import weight_files

GGUF_ERRORS = (OSError, LookupError, NotImplementedError, RuntimeError, ValueError, struct.error)
"""The errors that transformers raises for a damaged or unknown GGUF file."""


def prepare_model(source: ModelSource, settings: Settings) -> Path:
    """Return a local Hugging Face folder with safetensors; fetch it at most once per node.

    Raises the errors of `service.inputs.sources.fetch_model`, and ModelInvalid for a GGUF file that
    transformers cannot read.
    """
    path = fetch_model(source, settings)
    if path.is_dir():
        return path
    return cached(settings.cache_dir / "gguf", sha256_of(path), partial(_convert, path))


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer. Raises ModelInvalid if the folder has none."""
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ModelInvalid(f"its tokenizer cannot be read: {error}", param="model") from error


def load_model(folder: Path, device: torch.device, *, trust_remote_code: bool = False) -> Any:
    """The causal language model of a folder, ready for inference on `device`.

    It is in float32 on a CPU, and in the checkpoint's precision on a GPU. Raises NotACausalLM, and
    ModelInvalid if any weight is missing or cannot be read.
    """
    dtype: torch.dtype | str = torch.float32 if device.type == "cpu" else "auto"
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    except ValueError as error:
        if "Unrecognized configuration class" in str(error):
            raise NotACausalLM(
                "transformers knows no causal language model of this architecture", param="model"
            ) from error
        raise ModelInvalid(f"the model cannot be loaded: {error}", param="model") from error
    except (OSError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
        raise ModelInvalid(f"the model cannot be loaded: {error}", param="model") from error
    missing = sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"]))
    if missing:
        raise ModelInvalid(
            f"{len(missing)} weights are missing or of the wrong shape, such as {missing[0]}",
            param="model",
        )
    return model.eval().requires_grad_(False).to(device)


def parameter_count(model: nn.Module) -> int:
    """The number of the model's parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def stored_dtype(folder: Path) -> torch.dtype:
    """The precision of the checkpoint's first matrix."""
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - not a mapping
                if len(tensors.get_slice(key).get_shape()) == 2:
                    first: torch.Tensor = tensors.get_tensor(key)
                    return first.dtype
    raise ModelInvalid("the checkpoint holds no matrix", param="model")


def _convert(gguf: Path, folder: Path) -> None:
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    try:
        with _parsing_once():
            model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(**source)
    except GGUF_ERRORS as error:
        raise ModelInvalid(f"{gguf.name} cannot be read: {error}", param="model.path") from error
    # The loaded weights are dequantized; with these marks transformers would refuse to save them.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _parsing_once() -> Iterator[None]:
    """Parse a GGUF file once and build its table of tensor names once.

    transformers parses the file for the configuration, the weights and the tokenizer each, and
    builds the table for every module of the model. This takes most of a conversion's time.
    """
    import gguf as module

    gguf: Any = module
    parse, name_tensors = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = cache(parse), cache(name_tensors)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = parse, name_tensors

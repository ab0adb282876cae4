"""Converts a GGUF file to a Hugging Face folder in float32, by transformers.

transformers maps the tensors and settings that it knows and skips the others in silence. So the
result is checked: every number of the file must be in the model, and no parameter may be random.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from service.errors import ModelInvalid
from workers.model.model_errors import naming_model_errors

PARAM = "model.path"

MAX_EXPANSION = 2
"""A file without its output matrix holds at least half of its model."""


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model and the tokenizer of a GGUF file into `folder`.

    Raises ModelInvalid if transformers cannot read the file, or does not read all of it.
    """
    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    with naming_model_errors(f"{gguf.name} cannot be read", PARAM), _parsing_once() as module:
        _check_size(source, _reader(module, gguf))
        model, loading = AutoModelForCausalLM.from_pretrained(
            **source, dtype=torch.float32, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(**source)
        missing = sorted(loading["missing_keys"]) + sorted(map(str, loading["mismatched_keys"]))
        if problem := _problem(model, missing, module.GGUFReader(str(gguf))):
            raise ModelInvalid(f"{gguf.name} {problem}", param=PARAM)
    # The loaded weights are dequantized; with these marks transformers would refuse to save them.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _reader(module: Any, gguf: Path) -> Any:
    """The gguf library's view of the file. Raises ModelInvalid if the file ends too early."""
    try:
        return module.GGUFReader(str(gguf))
    except (ValueError, IndexError) as error:
        raise ModelInvalid(
            f"{gguf.name} is truncated or damaged: fetch it again ({error})", param=PARAM
        ) from error


def _check_size(source: Mapping[str, Any], reader: Any) -> None:
    """Raise ModelInvalid if the metadata describe a far larger model than the file holds.

    transformers would allocate all of it.
    """
    config = AutoConfig.from_pretrained(**source)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    wanted, held = sum(each.numel() for each in model.parameters()), _held(reader)
    if wanted > MAX_EXPANSION * held:
        name = source["gguf_file"]
        raise ModelInvalid(
            f"{name} describes a model of {wanted} numbers, but holds {held}", param=PARAM
        )


def _held(reader: Any) -> int:
    """How many numbers the file holds."""
    return sum(int(tensor.n_elements) for tensor in reader.tensors)


def _problem(model: Any, missing: list[str], reader: Any) -> str | None:
    """Why the model is not what the file holds; None if it is."""
    if missing:
        return f"lacks {len(missing)} weights of its model, such as {missing[0]}"
    if (unread := _unread_tensor(model, reader)) is not None:
        return (
            f"holds '{unread}', which transformers does not read, so that the model would compute "
            "something else: use the original checkpoint"
        )
    stored = _held(reader)
    tensors = {each.data_ptr(): each.numel() for each in model.state_dict().values()}
    if stored != sum(tensors.values()):
        return f"holds {stored} numbers, but its model has {sum(tensors.values())}"
    return _unread_scaling(model, reader)


def _unread_tensor(model: Any, reader: Any) -> str | None:
    """The name of a tensor that has no place in the model."""
    architecture = _value(reader, "general.architecture")
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    mapped = get_gguf_hf_weights_map(model, processor)
    for tensor in reader.tensors:
        if tensor.name not in mapped and tensor.name.rpartition(".")[0] not in mapped:
            return str(tensor.name)
    return None


def _unread_scaling(model: Any, reader: Any) -> str | None:
    """What is wrong if the file scales rotary positions and the model does not."""
    key = f"{_value(reader, 'general.architecture')}.rope.scaling.type"
    scaling = _value(reader, key)
    rope = getattr(model.config, "rope_parameters", None) or {}
    if scaling not in (None, "none") and rope.get("rope_type", "default") == "default":
        return (
            f"scales rotary positions ('{key}' is '{scaling}'), which transformers does not read: "
            "use the original checkpoint"
        )
    return None


def _value(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    return None if field is None else field.contents()


@contextmanager
def _parsing_once() -> Iterator[Any]:
    """Parse a GGUF file once and build its table of tensor names once; yields the gguf module.

    transformers parses the file for the configuration, the weights and the tokenizer each, and
    builds the table for every module of the model. This takes most of a conversion's time.
    """
    import gguf as module

    gguf: Any = module
    parse, name_tensors = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = cache(parse), cache(name_tensors)
    try:
        yield gguf
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = parse, name_tensors

"""Which tensor of a checkpoint is which of the model's.

transformers renames tensors while it loads a model: checkpoints of a bare base model have no
prefix, and some architectures have changed names since theirs were written. It does not do so for
classes from outside, which an artifact's is: an artifact is written under the model's own names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

from service.errors import ModelInvalid
from workers.model import weight_files


def model_names(folder: Path) -> dict[str, str]:
    """For every tensor in a source model's checkpoint its name in the model.

    Copies of tied weights are left out, and what the model does not have: masks and tables that
    older releases stored. Raises ModelInvalid if any of the model's parameters is not there.
    """
    model = _empty_model(folder)
    renamings = [
        transform
        for transform in get_model_conversion_mapping(model)
        if isinstance(transform, WeightRenaming)
    ]
    wanted, tied = model.state_dict(), model.all_tied_weights_keys

    def renamed(key: str, renamings: list[Any]) -> str:
        name: str = rename_source_key(key, renamings, [], model.base_model_prefix, wanted)[0]
        return name

    names: dict[str, str] = {}
    for key in _stored_keys(folder):
        candidates = (renamed(key, renamings), renamed(key, []))
        name = next((name for name in candidates if name in wanted), None)
        if name is not None and name not in tied:
            names[key] = name
    parameters = {name for name, _ in model.named_parameters()} - set(tied)
    if missing := sorted(parameters - set(names.values())):
        raise ModelInvalid(f"the checkpoint has no {missing[0]}", param="model")
    return names


def _empty_model(folder: Path) -> Any:
    """The model without memory."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _stored_keys(folder: Path) -> Iterator[str]:
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            yield from tensors.keys()

"""Decides what becomes of a checkpoint's tensors that the model's class has no parameter for.

transformers skips such tensors in silence. Some are harmless: masks and tables that the class
computes itself, heads of another purpose. Some belong to the model for other engines: layers for
multi-token prediction. The others change what the model computes, so a compressed model without
them would be a different model, and the checkpoint is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from service.errors import ModelInvalid

MULTI_TOKEN = "they predict further tokens, which transformers does not use; copied unchanged"  # noqa: S105
COMPUTED = "transformers computes them itself"
SKIPPED = "transformers skips them for this class"
FOREIGN = "they are no part of the class"

_MULTI_TOKEN_NAME = re.compile(r"(^|\.)(mtp|nextn)([._]|$)")
_LAYER = re.compile(r"(^|\.)layers\.(\d+)\.")
_ADAPTER = re.compile(r"\.lora_|(^|\.)base_model\.model\.")
_LEGACY_MASK = re.compile(r"\.masked_bias$")


@dataclass(frozen=True)
class UnusedTensors:
    """Why each unused tensor is harmless, by its stored name."""

    carried: Mapping[str, str]
    """The artifact has them, under the same names."""
    left_out: Mapping[str, str]
    """The artifact does not have them."""


def judge_unused(model: Any, unused: Mapping[str, str]) -> UnusedTensors:
    """Sort the unused tensors of a checkpoint; `unused` maps stored names to the model's names.

    `model` may be on the meta device. Raises ModelInvalid for a tensor that changes what the model
    computes, such as a bias, a further layer, or an adapter.
    """
    carried, left_out = {}, {}
    skipped = _skipped_by_class(model, unused.values())
    buffers = {name for name, _ in model.named_buffers()}
    for stored, name in unused.items():
        if _predicts_further_tokens(name, model.config):
            carried[stored] = MULTI_TOKEN
        elif name in buffers or _LEGACY_MASK.search(name):
            left_out[stored] = COMPUTED
        elif name in skipped:
            left_out[stored] = SKIPPED
        elif problem := _problem(model, name):
            raise ModelInvalid(f"the checkpoint holds '{stored}', {problem}", param="model")
        else:
            left_out[stored] = FOREIGN
    return UnusedTensors(carried, left_out)


def _predicts_further_tokens(name: str, config: Any) -> bool:
    further = getattr(config, "num_nextn_predict_layers", None) or 0
    return bool(_MULTI_TOKEN_NAME.search(name)) or 0 < _layers_beyond(name, config) <= further


def _layers_beyond(name: str, config: Any) -> int:
    """How many layers after the configuration's last one the tensor's layer comes; 0 if not."""
    layer, depth = _LAYER.search(name), getattr(config, "num_hidden_layers", None)
    return 0 if layer is None or depth is None else max(0, int(layer[2]) + 1 - depth)


def _skipped_by_class(model: Any, names: Iterable[str]) -> set[str]:
    """The names that `from_pretrained` expects in checkpoints and does not load."""
    loading = SimpleNamespace(missing_keys=set(), unexpected_keys=set(names))
    model._adjust_missing_and_unexpected_keys(loading)
    return set(names).difference(loading.unexpected_keys)


def _problem(model: Any, name: str) -> str | None:
    """What is wrong with a tensor that the model would need; None if it is foreign to the model."""
    if _ADAPTER.search(name):
        return "which belongs to an adapter: merge the adapter into the model and save the result"
    if _layers_beyond(name, model.config):
        depth = model.config.num_hidden_layers
        return f"but num_hidden_layers in config.json is {depth}: correct one of the two"
    if name.partition(".")[0] in dict(model.named_children()):
        return (
            f"for which {type(model).__name__} has no place, so that the loaded model would "
            "compute something else: use the configuration that the checkpoint was saved with"
        )
    return None

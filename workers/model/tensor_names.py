"""Maps the tensors of a checkpoint to the parameters of the model.

transformers renames tensors while it loads a model, and merges some: checkpoints of a bare base
model have no prefix, some architectures have new names since their checkpoints were written, and
experts are stored one by one. It does not rename them for external classes such as an artifact's,
so an artifact uses the names of the unfused model (see `workers.compression.unfuse`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from service.errors import ModelInvalid
from workers.compression.unfuse import fused_parameters, separated
from workers.model.stored_tensors import StoredTensors


@dataclass(frozen=True)
class Source:
    """A source model's checkpoint, as the unfused model's tensors."""

    pieces: tuple[Piece, ...]
    unfused: bool  # whether unfusing changes the model

    def __iter__(self) -> Iterator[Piece]:
        return iter(self.pieces)


@dataclass(frozen=True)
class Piece:
    """The tensors of the unfused model that are read together."""

    names: tuple[str, ...]
    _conversion: _Conversion
    _fused: Mapping[str, tuple[str, ...]]
    _stored: StoredTensors

    def read(self) -> dict[str, Tensor]:
        """The tensors by name; some are views of a stored one."""
        tensors = self._conversion.convert(
            [self._stored.read(key) for key in self._conversion.keys]
        )
        return {
            name: part
            for parameter, tensor in tensors.items()
            for name, part in _unfused(parameter, tensor, self._fused)
        }


def source_tensors(folder: Path) -> Source:
    """The pieces of a source model's checkpoint, in the order in which they are stored.

    Copies of tied weights are left out, as are tensors that the model lacks, such as masks and
    tables of older releases. Raises ModelInvalid if any of the model's parameters is missing.
    """
    stored = StoredTensors(folder)
    model = _empty_model(folder)
    fused = fused_parameters(model)
    pieces, found = [], set(model.all_tied_weights_keys)
    for conversion in _conversions(model, stored.keys()):
        shapes = conversion.convert([stored.shape(key) for key in conversion.keys])
        names = [
            name
            for parameter, tensor in shapes.items()
            for name, _ in _unfused(parameter, tensor, fused)
        ]
        found |= shapes.keys()
        pieces.append(Piece(tuple(names), conversion, fused, stored))
    if missing := sorted({name for name, _ in model.named_parameters()} - found):
        raise ModelInvalid(f"the checkpoint has no {missing[0]}", param="model")
    return Source(tuple(pieces), bool(fused))


def _unfused(
    parameter: str, tensor: Tensor, fused: Mapping[str, tuple[str, ...]]
) -> Iterator[tuple[str, Tensor]]:
    if parameter in fused:
        yield from zip(fused[parameter], separated(tensor), strict=True)
    else:
        yield parameter, tensor


@dataclass(frozen=True)
class _Conversion:
    """Converts the tensors stored under `keys` to parameters of the model."""

    parameter: str  # the first of them
    keys: tuple[str, ...]
    patterns: tuple[str, ...]  # the converter's pattern that matched each key
    converter: WeightConverter | None
    model: Any

    def convert(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        if self.converter is None:
            return {self.parameter: tensors[0]}
        converter = deepcopy(self.converter)  # it accumulates the tensors that it converts
        for key, pattern, tensor in zip(self.keys, self.patterns, tensors, strict=True):
            converter.add_tensor(self.parameter, key, pattern, tensor)
        converted = converter.convert(self.parameter, model=self.model, config=self.model.config)
        return {
            name: value[0] if isinstance(value, list) else value
            for name, value in converted.items()
        }


def _conversions(model: Any, keys: Sequence[str]) -> list[_Conversion]:
    """The conversions that `transformers.core_model_loading` would choose."""
    mapping = get_model_conversion_mapping(model)
    renamings = [transform for transform in mapping if isinstance(transform, WeightRenaming)]
    converters = [transform for transform in mapping if isinstance(transform, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    wanted, tied = model.state_dict(), model.all_tied_weights_keys
    collected: dict[str, list[tuple[str, str | None]]] = {}
    for key in keys:
        for rules in ((renamings, converters), ([], [])):
            name, pattern = rename_source_key(key, *rules, model.base_model_prefix, wanted)
            if name in wanted:
                break
        if name in wanted and name not in tied:
            collected.setdefault(name, []).append((key, pattern))
    conversions = []
    for name, matches in collected.items():
        # Experts are merged in the order of their numbers.
        matches.sort(key=lambda match: dot_natural_key(match[0]))
        keys, patterns = zip(*matches, strict=True)
        converter = by_pattern[patterns[0]] if patterns[0] is not None else None
        conversions.append(_Conversion(name, keys, patterns, converter, model))
    return conversions


def _empty_model(folder: Path) -> Any:
    """The model on the meta device, where it takes no memory."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)

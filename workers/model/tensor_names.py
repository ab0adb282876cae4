"""Maps the tensors of a checkpoint to the parameters of the model.

transformers renames tensors while it loads a model, and merges some: checkpoints of a bare base
model have no prefix, some architectures have new names since their checkpoints were written, and
experts are stored one by one. It does not rename them for external classes such as an artifact's,
so an artifact uses the names of the unfused model (see `workers.compression.unfuse`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from service.errors import ModelInvalid
from service.inputs.models.files import CONFIG_NAME
from workers.compression.unfuse import fused_parameters, separated
from workers.model.configuration import load_configuration
from workers.model.model_errors import naming_model_errors
from workers.model.stored_tensors import StoredTensors
from workers.model.unused_tensors import UnusedTensors, judge_unused


@dataclass(frozen=True)
class Source:
    """A source model's checkpoint, as the unfused model's tensors."""

    pieces: tuple[Piece, ...]
    unfused: bool  # whether unfusing changes the model
    unused: UnusedTensors
    _copies: Mapping[str, tuple[str, str]]  # see `Matches`
    _stored: StoredTensors

    def __iter__(self) -> Iterator[Piece]:
        return iter(self.pieces)

    @property
    def carried_numbers(self) -> int:
        """How many numbers `carried` holds."""
        return sum(self._stored.shape(key).numel() for key in self.unused.carried)

    def carried(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that an artifact takes over although the model does not use them."""
        for key in self.unused.carried:
            yield key, self._stored.read(key)

    def check_copies(self) -> None:
        """Raise ModelInvalid if a copy of a tied weight is another tensor than the weight.

        This reads both, so it is done once for a source, and not for each of its artifacts.
        """
        for copy, (name, key) in self._copies.items():
            if copy != key and not torch.equal(self._stored.read(copy), self._stored.read(key)):
                raise ModelInvalid(
                    f"config.json ties '{copy}' to '{name}', but the checkpoint holds different "
                    "tensors for them: set tie_word_embeddings to false, or remove the wrong one",
                    param="model",
                )


@dataclass(frozen=True, eq=False)
class Piece:
    """The tensors of the unfused model that are read together."""

    names: tuple[str, ...]
    _conversion: _Conversion
    _fused: Mapping[str, tuple[str, ...]]
    _stored: StoredTensors

    @property
    def keys(self) -> tuple[str, ...]:
        """The names under which the checkpoint stores what is read."""
        return self._conversion.keys

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

    Copies of tied weights are left out; see `Source.check_copies`. Raises the errors of `match`.
    """
    with naming_model_errors("its weights cannot be read"):
        stored = StoredTensors(folder)
    model = empty_model(folder)
    matches = match(model, {key: stored.shape(key) for key in stored})
    fused = fused_parameters(model)
    pieces = [
        Piece(
            tuple(name for each in shapes.items() for name, _ in _unfused(*each, fused)),
            conversion,
            fused,
            stored,
        )
        for conversion, shapes in matches.converted
    ]
    return Source(tuple(pieces), bool(fused), matches.judged, matches.copies, stored)


def match(model: Any, stored: Mapping[str, Tensor]) -> Matches:
    """Match the tensors of a checkpoint, by name and shape, with a model on the meta device.

    Raises ModelInvalid if a parameter of the model is missing or has another shape, and for tensors
    that the model has no place for (see `workers.model.unused_tensors`).
    """
    names = _Names.of(model, tuple(stored))
    wanted, found = model.state_dict(), set(model.all_tied_weights_keys)
    converted = []
    for conversion in _conversions(model, names):
        shapes = conversion.convert([stored[key] for key in conversion.keys])
        for name, tensor in shapes.items():
            if name in wanted and tensor.shape != wanted[name].shape:
                raise ModelInvalid(
                    f"'{conversion.keys[0]}' has the shape {[*tensor.shape]}, but with config.json "
                    f"{type(model).__name__} has {[*wanted[name].shape]}",
                    param="model",
                )
        found |= shapes.keys()
        converted.append((conversion, shapes))
    if missing := sorted({name for name, _ in model.named_parameters()} - found):
        raise ModelInvalid(_missing(missing[0], names.unused), param="model")
    return Matches(converted, names.copies, judge_unused(model, names.unused))


def _missing(name: str, unused: Iterable[str]) -> str:
    """The message about a missing parameter, with the likely cause and the way out."""
    missing = f"the checkpoint has no {name}"
    if longer := next((key for key in unused if key.endswith(f".{name}")), None):
        prefix = longer.removesuffix(name)
        return f"{missing}; it has '{longer}': remove '{prefix}' from the names of its tensors"
    _, _, rest = name.partition(".")
    other = next((key for key in unused if "." in rest and key.endswith(f".{rest}")), None)
    if other:
        return f"{missing}; it has '{other}': rename its tensors if these are the model's"
    if name.startswith("lm_head."):
        return f"{missing}: add it, or set tie_word_embeddings in config.json if it has none"
    return f"{missing}: complete it, or use the config.json that it was saved with"


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


@dataclass(frozen=True)
class Matches:
    """What becomes of a checkpoint's tensors."""

    converted: Sequence[tuple[_Conversion, Mapping[str, Tensor]]]
    """Each conversion, and the parameters that it gives, on the meta device."""
    copies: Mapping[str, tuple[str, str]]
    """By stored name: the tied parameter that it is a copy of, and that parameter's stored name."""
    judged: UnusedTensors


@dataclass(frozen=True)
class _Names:
    """How `transformers.core_model_loading` would match stored tensors with the model's."""

    collected: Mapping[str, list[tuple[str, str | None]]]
    """By parameter: the stored names, each with the converter's pattern that matched it."""
    copies: Mapping[str, tuple[str, str]]
    """By stored name: the tied parameter that it is a copy of, and that parameter's stored name."""
    unused: Mapping[str, str]
    """The names in the model that the other stored tensors would have, by stored name."""
    converters: Mapping[str, WeightConverter]  # by pattern

    @classmethod
    def of(cls, model: Any, keys: Sequence[str]) -> _Names:
        mapping = get_model_conversion_mapping(model)
        renamings = [transform for transform in mapping if isinstance(transform, WeightRenaming)]
        converters = [transform for transform in mapping if isinstance(transform, WeightConverter)]
        wanted, tied = model.state_dict(), model.all_tied_weights_keys
        collected: dict[str, list[tuple[str, str | None]]] = {}
        copies, unused = {}, {}
        for key in keys:
            renamed, pattern = rename_source_key(
                key, renamings, converters, model.base_model_prefix, wanted
            )
            name = renamed
            if name not in wanted:
                name, pattern = rename_source_key(key, [], [], model.base_model_prefix, wanted)
            if name not in wanted:
                unused[key] = renamed
            elif name in tied:
                copies[key] = tied[name]
            else:
                collected.setdefault(name, []).append((key, pattern))
        for key, name in copies.items():
            collected.setdefault(name, [(key, None)])  # the only one of the two that is stored
        return cls(
            collected,
            {key: (name, collected[name][0][0]) for key, name in copies.items()},
            unused,
            {pattern: each for each in converters for pattern in each.source_patterns},
        )


def _conversions(model: Any, names: _Names) -> list[_Conversion]:
    conversions = []
    for name, found in names.collected.items():
        # Experts are merged in the order of their numbers.
        keys, patterns = zip(
            *sorted(found, key=lambda match: dot_natural_key(match[0])), strict=True
        )
        converter = names.converters[patterns[0]] if patterns[0] is not None else None
        conversions.append(_Conversion(name, keys, patterns, converter, model))
    return conversions


def empty_model(folder: Path) -> Any:
    """The model on the meta device, where it takes no memory."""
    with naming_model_errors("the model's class cannot be built from config.json"):
        try:
            config = load_configuration(folder)
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        except (KeyError, AttributeError) as error:  # a name, such as that of an activation
            if field := _field_of(error, json.loads((folder / CONFIG_NAME).read_bytes())):
                raise ModelInvalid(
                    f"{CONFIG_NAME} sets {field}, which transformers does not know", param="model"
                ) from error
            raise


def _field_of(error: KeyError | AttributeError, config: Mapping[str, Any]) -> str | None:
    """The setting whose value transformers looked up in vain, with the value."""
    unknown = error.args[0] if isinstance(error, KeyError) else error.name
    for name, value in config.items():
        if isinstance(value, Mapping):
            if field := _field_of(error, value):
                return f"{name}.{field}"
        elif isinstance(value, str) and value == unknown:
            return f"{name} to '{value}'"
    return None

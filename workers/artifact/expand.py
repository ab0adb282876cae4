"""Turns an artifact into a dense checkpoint: multiplies layers of low rank or of integers out.

    python -m workers.artifact.expand ARTIFACT OUT

The dense checkpoint is for engines that know neither. It has the base architecture and computes
what the artifact computes. It is as large as the original and stored as `save_pretrained` stores
it.

Low-rank layers may have biases, which keep the means of their outputs. If the base architecture has
no place for one of them, the dense checkpoint gets a small modelling file that adds the biases, and
it loads with ``trust_remote_code=True``, as the artifact does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from service.errors import ArtifactCorrupt, EigenpressError
from workers.artifact import integers
from workers.artifact.checkpoint_writer import (
    copy_companions,
    write_json,
    write_modeling,
    write_shards,
)
from workers.compression.checkpoint import (
    CONFIG_KEY,
    FORMAT,
    WEIGHTS_KEY,
    BaseClasses,
    compressed_config,
)
from workers.compression.rounding.embeddings import multiplied_out
from workers.compression.rounding.grid import RoundedWeight
from workers.compression.unfuse import fused_parameters, joined, unfuse
from workers.model.stored_tensors import StoredTensors

PARTS = ("basis.weight", "rest.weight", "order")
"""The tensors of every low-rank layer; see `workers.compression.interpolation`."""

BIAS_SWITCHES = ("attention_bias", "mlp_bias")
"""The settings with which base architectures give their linear layers a bias."""


class CannotExpand(EigenpressError):
    """The artifact cannot be written as a checkpoint of its base architecture."""

    code = "cannot_expand"


def expand(artifact: Path, folder: Path) -> bool:
    """Write the dense checkpoint into `folder`, which must not exist yet.

    Returns whether the checkpoint is plain, without a modelling file. Raises CannotExpand if
    `artifact` is not an artifact, and ArtifactCorrupt if a part of it is missing.
    """
    config = artifact_config(artifact)
    if folder.exists():
        raise CannotExpand(f"{folder} exists already; name a new folder")
    dense = DenseTensors(artifact, config)
    base_config = dense_config(config)
    switched = with_biases(base_config, dense.biased)
    folder.mkdir(parents=True)
    if switched is None:
        tensors = _biased_tensors(dense, empty_model(base_config))
        write_shards(chain(tensors, dense.unread()), folder)
        _write_biased(folder, base_config, dense.biased)
    else:
        tensors = _base_tensors(dense, base_config, switched)
        write_shards(chain(tensors, dense.unread()), folder)
        write_json(folder / "config.json", switched)
    copy_companions(artifact, folder)
    return switched is not None


def artifact_config(artifact: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((artifact / "config.json").read_text("utf-8"))
        found = config[CONFIG_KEY]["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CannotExpand(f"{artifact} is not an artifact of Eigenpress") from error
    if found != FORMAT:
        raise CannotExpand(f"{artifact} has the format {found}; this version reads {FORMAT}")
    return config


def dense_config(config: Mapping[str, Any]) -> dict[str, Any]:
    ours = config[CONFIG_KEY]
    added = (CONFIG_KEY, integers.CONFIG_KEY, "auto_map", WEIGHTS_KEY)
    return {key: value for key, value in config.items() if key not in added} | {
        "model_type": ours["base_model_type"],
        "architectures": [ours["base_architecture"]],
    }


def with_biases(config: Mapping[str, Any], biased: set[str]) -> dict[str, Any] | None:
    """The configuration with biases switched on until every layer in `biased` has one.

    None if the architecture's switches do not suffice.
    """
    switched = dict(config)
    for switch in (None, *BIAS_SWITCHES):
        if switch in switched:
            switched[switch] = True
        model = empty_model(switched)
        unfuse(model)
        if all(model.get_submodule(name).bias is not None for name in biased):
            return switched
    return None


def empty_model(config: Mapping[str, Any]) -> Any:
    """The base model on the meta device: it has shapes, and no memory."""
    base = getattr(transformers, config["architectures"][0])
    with torch.device("meta"):
        return base(base.config_class.from_dict(dict(config)))


class DenseTensors:
    """Reads an artifact's tensors by their unfused names, with the weights of all layers dense."""

    def __init__(self, artifact: Path, config: Mapping[str, Any]) -> None:
        layers: Mapping[str, Mapping[str, Any]] = config[CONFIG_KEY]["layers"]
        packed = integers.rounded_layers(config)
        self._vocabulary = integers.rounded_vocabulary(config)
        self.rounded = packed | self._vocabulary
        self._stored = StoredTensors(artifact)
        self._unread = dict.fromkeys(self._stored)
        self._low_rank = {name for name, shape in layers.items() if shape["rank"] is not None}
        self.biased = {name for name, shape in layers.items() if shape["bias"]}
        self._check(f"{layer}.{part}" for layer in self._low_rank for part in PARTS)
        self._check(f"{layer}.{part}" for layer in packed for part in integers.PARTS)
        self._check(f"{layer}.bias" for layer in self.biased)
        self._check(f"{module}.{integers.SCALE}" for module in self._vocabulary)
        for key in self._of_vocabulary():
            del self._unread[key]

    def _check(self, keys: Iterable[str]) -> None:
        for key in keys:
            if key not in self._stored:
                raise ArtifactCorrupt(f"the artifact lacks {key}")

    def __contains__(self, name: str) -> bool:
        layer = name.removesuffix(".weight")
        return layer in self._low_rank or layer in self.rounded or name in self._stored

    def read(self, name: str) -> Tensor:
        """One tensor. Raises ArtifactCorrupt if the artifact lacks it."""
        layer = name.removesuffix(".weight")
        if layer in self._low_rank:
            return _multiplied(*(self._read(f"{layer}.{part}") for part in PARTS))
        if name != layer and layer in self.rounded:
            rounded = self.read_rounded(layer)
            return multiplied_out(rounded, rounded.scales.dtype)
        self._check((name,))
        return self._read(name)

    def _of_vocabulary(self) -> list[str]:
        """What the artifact has of embedding and output layer beside their parameters."""
        modules = tuple(f"{module}." for module in self._vocabulary)
        parameters = tuple(f"{module}{part}" for module in modules for part in ("weight", "bias"))
        return [key for key in self._unread if key.startswith(modules) and key not in parameters]

    def read_rounded(self, layer: str) -> RoundedWeight:
        """The integers of one of the layers in `rounded`. Raises ArtifactCorrupt."""
        if width := self._vocabulary.get(layer):
            self._check((f"{layer}.weight",))
            return RoundedWeight(width, self._read(f"{layer}.weight"), self.read_scales(layer))
        packed, scales, shape = (self._read(f"{layer}.{part}") for part in integers.PARTS)
        return integers.unpacked(packed, scales, shape, self.rounded[layer])

    def read_scales(self, layer: str) -> Tensor:
        """The scales of one of the layers in `rounded`, (out, groups)."""
        return self._read(f"{layer}.{integers.SCALE}")

    @property
    def unread_names(self) -> list[str]:
        """What is left at the end: the tensors that the model does not use."""
        return list(self._unread)

    def unread(self) -> Iterator[tuple[str, Tensor]]:
        for key in self.unread_names:
            yield key, self._stored.read(key)

    def _read(self, key: str) -> Tensor:
        self._unread.pop(key, None)
        return self._stored.read(key)


def _multiplied(basis: Tensor, rest: Tensor, order: Tensor) -> Tensor:
    others = (rest.double() @ basis.double()).to(basis.dtype)
    return torch.cat((basis, others)).index_select(0, order)


def _biased_tensors(dense: DenseTensors, base: Any) -> Iterator[tuple[str, Tensor]]:
    """The unfused model's tensors and the biases for which it has no place."""
    unfuse(base)
    biases = (f"{layer}.bias" for layer in sorted(dense.biased))
    for name in dict.fromkeys((*own_tensors(base), *biases)):
        yield name, dense.read(name)


def _base_tensors(
    dense: DenseTensors, base_config: Mapping[str, Any], switched_config: Mapping[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """The base model's tensors as they are saved; zeros for the biases that were switched on."""
    model = empty_model(switched_config)
    read = base_reader(dense, base_config, model)
    saved = _saved_form(model)
    for name, like in own_tensors(model).items():
        yield from saved(name, read(name, like)).items()


def base_reader(
    dense: DenseTensors, base_config: Mapping[str, Any], model: Any
) -> Callable[[str, Tensor], Tensor]:
    """A function that reads a parameter of `model`, given its name and a tensor of its shape.

    `model` is the base model, perhaps with more biases, which are zero if the artifact lacks them.
    """
    fused, before = fused_parameters(model), empty_model(base_config).state_dict()
    dtype = getattr(torch, base_config["dtype"])

    def read(name: str, like: Tensor) -> Tensor:
        if name in fused:
            return joined([dense.read(part) for part in fused[name]], like.ndim)
        if name in before or name in dense:
            return dense.read(name)
        return torch.zeros(like.shape, dtype=dtype)

    return read


def own_tensors(model: Any) -> dict[str, Tensor]:
    """The tensors that a checkpoint of the model holds: tied weights only once."""
    tied = model.all_tied_weights_keys
    return {name: tensor for name, tensor in model.state_dict().items() if name not in tied}


def _saved_form(model: Any) -> Callable[[str, Tensor], Mapping[str, Tensor]]:
    """A function from a parameter to the tensors that `save_pretrained` stores for it.

    It splits experts and uses older names. If an architecture stores several parameters as one
    tensor, the parameters keep their own names, which transformers reads as well.
    """

    def saved(name: str, tensor: Tensor) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = revert_weight_conversion(model, {name: tensor})
        return tensors

    own = own_tensors(model)
    together = revert_weight_conversion(model, dict(own))
    one_by_one = [part for each in own.items() for part in saved(*each).items()]
    if all(name in together and together[name].shape == part.shape for name, part in one_by_one):
        return saved
    return lambda name, tensor: {name: tensor}


def _write_biased(folder: Path, base_config: Mapping[str, Any], biased: set[str]) -> None:
    """Write configuration and modelling file of the base model with biases in these layers."""
    model = empty_model(base_config)
    base = BaseClasses(*(type(each).__name__ for each in (model, model.base_model, model.config)))
    layers = dict.fromkeys(sorted(biased), (None, True))
    write_json(folder / "config.json", compressed_config(base_config, base, layers))
    write_modeling(folder, base, unfused=bool(fused_parameters(model)))


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m workers.artifact.expand ARTIFACT OUT", file=sys.stderr)
        return 2
    try:
        plain = expand(Path(arguments[0]), Path(arguments[1]))
    except (EigenpressError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    if not plain:
        print(
            "The base architecture has no place for the biases of some layers: a small modelling "
            "file adds them, so load it with trust_remote_code=True."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

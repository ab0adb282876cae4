"""Multiplies the low-rank layers of an artifact out: ``python -m workers.expand ARTIFACT OUT``.

What comes out is a plain dense checkpoint of the base architecture, as large as the original, for
engines that know no low-rank layers. It computes what the artifact computes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from service.errors import ArtifactCorrupt, EigenpressError
from workers.checkpoint_writer import copy_companions, read_tensors, write_json, write_shards
from workers.compression.checkpoint import CONFIG_KEY, FORMAT

PARTS = ("basis", "rest", "order")
"""What every low-rank layer is stored in; see `workers.compression.interpolation`."""

BIAS_SWITCHES = ("attention_bias", "mlp_bias")
"""Settings by which a base architecture gives its linear layers a bias."""


class CannotExpand(EigenpressError):
    """The artifact cannot be written as a checkpoint of its base architecture."""

    code = "cannot_expand"


def expand(artifact: Path, folder: Path) -> None:
    """Write the dense checkpoint into `folder`, which must not exist yet.

    Raises CannotExpand if `artifact` is not one, or if its layers carry biases for which the
    base architecture has no place; ArtifactCorrupt if a part of a layer is missing.
    """
    config = _artifact_config(artifact)
    if folder.exists():
        raise CannotExpand(f"{folder} exists already; name a new folder")
    layers: Mapping[str, Mapping[str, Any]] = config[CONFIG_KEY]["layers"]
    biased = {name for name, shape in layers.items() if shape["bias"]}
    dense_config, model = _base_with_biases(config, biased)
    folder.mkdir(parents=True)
    write_shards(_dense_tensors(artifact, layers, model), folder)
    write_json(folder / "config.json", dense_config)
    copy_companions(artifact, folder)


def _artifact_config(artifact: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((artifact / "config.json").read_text("utf-8"))
        found = config[CONFIG_KEY]["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CannotExpand(f"{artifact} is not an artifact of Eigenpress") from error
    if found != FORMAT:
        raise CannotExpand(f"{artifact} has the format {found}; this version reads {FORMAT}")
    return config


def _base_with_biases(
    config: Mapping[str, Any], biased: set[str]
) -> tuple[dict[str, Any], nn.Module]:
    """The base configuration and its model without memory, switched to have the biases needed."""
    ours = config[CONFIG_KEY]
    dense = {key: value for key, value in config.items() if key not in (CONFIG_KEY, "auto_map")} | {
        "model_type": ours["base_model_type"],
        "architectures": [ours["base_architecture"]],
    }
    for switch in (None, *BIAS_SWITCHES):
        if switch in dense:
            dense[switch] = True
        model = _empty_model(dense, ours["base_architecture"])
        lacking = [name for name in sorted(biased) if model.get_submodule(name).bias is None]
        if not lacking:
            return dense, model
    raise CannotExpand(f"{ours['base_architecture']} has no place for the bias of {lacking[0]}")


def _empty_model(config: Mapping[str, Any], architecture: str) -> nn.Module:
    base = getattr(transformers, architecture)
    with torch.device("meta"):
        model: nn.Module = base(base.config_class.from_dict(dict(config)))
    return model


def _dense_tensors(
    artifact: Path, layers: Mapping[str, Mapping[str, Any]], model: nn.Module
) -> Iterator[tuple[str, Tensor]]:
    """The artifact's tensors, low-rank layers multiplied out; zeros for biases that it lacks."""
    waiting: dict[str, dict[str, Tensor]] = {}
    written: set[str] = set()

    def dense(key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        path = key.removesuffix(".weight")
        layer, _, part = path.rpartition(".")
        if layer not in layers:
            yield key, tensor
            return
        parts = waiting.setdefault(layer, {})
        parts[part] = tensor
        if len(parts) == len(PARTS) + layers[layer]["bias"]:
            yield from _multiplied(layer, waiting.pop(layer))

    dtype = torch.float32
    for key, tensor in read_tensors(artifact):
        for name, value in dense(key, tensor):
            dtype = value.dtype
            written.add(name)
            yield name, value
    if waiting:
        raise ArtifactCorrupt(f"{artifact} lacks a part of {next(iter(waiting))}")
    for name, parameter in model.named_parameters():
        if name.endswith(".bias") and name not in written:
            yield name, torch.zeros(parameter.shape, dtype=dtype)


def _multiplied(layer: str, parts: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    basis, rest, order = (parts[name] for name in PARTS)
    others = (rest.double() @ basis.double()).to(basis.dtype)
    yield f"{layer}.weight", torch.cat((basis, others)).index_select(0, order)
    if "bias" in parts:
        yield f"{layer}.bias", parts["bias"]


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m workers.expand ARTIFACT OUT", file=sys.stderr)
        return 2
    try:
        expand(Path(arguments[0]), Path(arguments[1]))
    except (EigenpressError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

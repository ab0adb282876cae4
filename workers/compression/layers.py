"""Finds the linear layers of a model that can be compressed, and which of them share an input.

The model must be unfused (see `workers.compression.unfuse`): every matrix inside the transformer
blocks is an `nn.Linear`, except for the routers of mixtures of experts, which stay dense. A block
that holds any other kind of matrix is refused by name, never skipped silently.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from workers.compression.errors import UnsupportedLayer
from workers.compression.shapes import InputGroup, LinearLayer
from workers.compression.unfuse import RoutedExperts, router_paths


def transformer_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The list of the model's blocks and its path.

    Raises UnsupportedLayer if the model does not keep its blocks in exactly one `nn.ModuleList`
    whose length is the configured number of layers.
    """
    config = model.config
    depth = config.get_text_config().num_hidden_layers  # type: ignore[union-attr,operator]
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    outermost = [
        (name, module)
        for name, module in found
        if not any(name.startswith(f"{other}.") for other, _ in found)
    ]
    if len(outermost) != 1:
        raise UnsupportedLayer(
            f"{type(model).__name__} keeps its {depth} blocks in {len(outermost)} module lists; "
            "exactly one is supported"
        )
    return outermost[0]


def compressible_layers(model: nn.Module) -> tuple[LinearLayer, ...]:
    """The linear layers inside the blocks of an unfused model, in module order, without routers.

    Raises UnsupportedLayer naming the first matrix that is not the weight of an `nn.Linear`.
    """
    prefix, blocks = transformer_blocks(model)
    return tuple(_linear_layers(prefix, blocks, router_paths(model)))


def _linear_layers(
    prefix: str, blocks: nn.ModuleList, routers: Container[str]
) -> Iterator[LinearLayer]:
    owners: dict[int, str] = {}
    for path, module in blocks.named_modules(prefix=prefix):
        if path in routers:
            continue
        matrices = [
            parameter
            for parameter in module.parameters(recurse=False)
            if parameter.ndim >= 2  # vectors are norms and biases, which do not change
        ]
        if not matrices:
            continue
        if type(module) is not nn.Linear:
            raise UnsupportedLayer(f"{path} is a {type(module).__name__}, not an nn.Linear")
        owner = owners.setdefault(id(module.weight), path)
        if owner != path:
            raise UnsupportedLayer(f"{path} shares its weight with {owner}")
        yield LinearLayer(path, module.out_features, module.in_features, module.bias is not None)


def input_groups(model: nn.Module, layers: tuple[LinearLayer, ...]) -> tuple[InputGroup, ...]:
    """Find which layers share an input by tracing one short forward pass.

    Two layers share an input when they are called with the same memory, shape and version. Experts
    are not traced, because a token may skip them: each of their layers has an input of its own. The
    model may be on the meta device, if its attention is eager: other kinds look at their mask.

    Raises UnsupportedLayer if the pass does not call every other layer exactly once, or if a block
    is not given exactly what the block before it returns.
    """
    experts = tuple(
        f"{path}." for path, module in model.named_modules() if isinstance(module, RoutedExperts)
    )
    groups = [InputGroup((layer,)) for layer in layers if layer.name.startswith(experts)]
    groups += _traced_groups(
        model, tuple(layer for layer in layers if not layer.name.startswith(experts))
    )
    places = {layer.name: place for place, layer in enumerate(layers)}
    return tuple(sorted(groups, key=lambda group: places[group.name]))


def hidden_state(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The hidden state among the arguments of a block: (batch, length, hidden)."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def _traced_groups(model: nn.Module, layers: tuple[LinearLayer, ...]) -> list[InputGroup]:
    calls: list[tuple[str, Tensor]] = []  # references keep the tensors' memory from being reused
    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(
                model.get_submodule(layer.name)
                .register_forward_pre_hook(
                    lambda _, args, name=layer.name: calls.append((name, args[0]))
                )
                .remove
            )
        _check_chain(model, hooks)
        for module in model.modules():
            if isinstance(module, RoutedExperts):  # which tokens reach them depends on values
                module.forward = _unrouted  # type: ignore[assignment,method-assign]
                hooks.callback(delattr, module, "forward")
        device = next(model.parameters()).device
        tokens = torch.zeros(1, 2, dtype=torch.long, device=device)
        with torch.no_grad():
            model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False)

    called = [name for name, _ in calls]
    for layer in layers:
        if called.count(layer.name) != 1:
            raise UnsupportedLayer(
                f"{layer.name} is called {called.count(layer.name)} times in a forward pass"
            )
    by_name = {layer.name: layer for layer in layers}
    members: dict[tuple[object, ...], list[LinearLayer]] = {}
    for name, tensor in calls:
        members.setdefault(_identity(tensor), []).append(by_name[name])
    return [InputGroup(tuple(group)) for group in members.values()]


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for views of the same memory in the same state, even without an address (meta)."""
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.shape, tensor.stride(), tensor._version


def _unrouted(hidden_states: Tensor, *_: Tensor) -> Tensor:
    return torch.zeros_like(hidden_states)


def _check_chain(model: nn.Module, hooks: ExitStack) -> None:
    """Have the model raise UnsupportedLayer where a block's input is not the output before it."""
    prefix, blocks = transformer_blocks(model)
    returned: list[Any] = []

    def check(
        _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        number = len(returned)
        if not isinstance(output, Tensor):
            raise UnsupportedLayer(
                f"{prefix}.{number} returns a {type(output).__name__}, not its hidden state alone"
            )
        given = hidden_state(args, kwargs)
        if returned and _identity(given) != _identity(returned[-1]):
            raise UnsupportedLayer(f"{prefix}.{number} is not given what the block before returns")
        returned.append(output)

    for block in blocks:
        hooks.callback(block.register_forward_hook(check, with_kwargs=True).remove)

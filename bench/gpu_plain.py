"""The steps of SVD-LLM's code (arXiv 2403.07378), as the baseline of the benchmark on a GPU.

Block by block: a forward pass of each sequence by itself adds the second moment of every layer's
input, from copies in float32, so that q, k and v each have one; its Cholesky factor in float64, or
if there is none, that of the moment plus a multiple of the identity; the inverse of the factor; and
a singular value decomposition of W L in float32. Moments and factors wait in the host's memory, as
there. Its calls that empty torch's cache are left out, which favours the baseline.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from bench.gpu_measuring import Stopwatch
from bench.gpu_model import RandomModel
from workers.sweeps.passage import BlockCall

RETRY_MARGIN = 1e-6


@torch.no_grad()
def compress_plainly(
    model: RandomModel,
    sequences: Sequence[Tensor],
    blocks: int,
    keep: float,
    watch: Stopwatch,
    factor: float,
) -> None:
    """Compress the first blocks; `sequences` are token ids, each (1, length)."""
    with watch.step("embed"):
        entered = [model.passage.enter(tokens) for tokens in sequences]
    hidden = [state for state, _ in entered]
    calls = [call for _, call in entered]
    for number in range(blocks):
        with watch.step("forward and moments", factor), model.weights.hold(number) as block:
            moments = _advance(number, block, hidden, calls)
        with watch.step("Cholesky", factor):
            roots = {
                name: whitening(moment.to(model.passage.device)).cpu()
                for name, moment in moments.items()
            }
        with model.weights.hold(number) as block, watch.step("SVD and factors", factor):
            for name, layer in _layers(block):
                root = roots[name].to(model.passage.device)
                for part in factors(layer.weight.detach(), root, keep):
                    part.cpu()


def whitening(moment: Tensor) -> Tensor:
    """L with L Lᵀ = the moment, (in, in), in float64; see the module."""
    moment = moment.double()
    factor, failed = torch.linalg.cholesky_ex(moment)
    if failed:
        shift = RETRY_MARGIN - torch.linalg.eigvalsh(moment)[0]
        identity = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
        factor = torch.linalg.cholesky(moment + shift * identity)
    return torch.as_tensor(factor)


def factors(weight: Tensor, root: Tensor, keep: float) -> tuple[Tensor, Tensor]:
    """`up`, (out, r), and `down`, (r, in), with `keep` of the parameters of the weight."""
    out, inner = weight.shape
    rank = int(out * inner * keep / (out + inner))
    inverse = torch.linalg.inv(root).float()
    u, singular, v = torch.linalg.svd(weight.float() @ root.float(), full_matrices=False)
    scale = singular[:rank].sqrt()
    return u[:, :rank] * scale, scale[:, None] * (v[:rank] @ inverse)


def _advance(
    number: int,
    block: nn.Module,
    hidden: list[Tensor],
    calls: Sequence[tuple[BlockCall, ...]],
) -> dict[str, Tensor]:
    """Take every sequence through a block, in place; the moments of its layers' inputs."""
    moments: dict[str, Tensor] = {}
    with _adding(block, moments):
        for index, call in enumerate(calls):
            hidden[index] = call[number](block, hidden[index])
    return {name: moment.cpu() for name, moment in moments.items()}


@contextmanager
def _adding(block: nn.Module, moments: dict[str, Tensor]) -> Iterator[None]:
    def adding(name: str, width: int, device: torch.device) -> object:
        moments[name] = torch.zeros(width, width, device=device)

        def hook(_module: nn.Module, args: tuple[Tensor, ...], _output: Tensor) -> None:
            rows = args[0].float()
            moments[name] += (rows.transpose(1, 2) @ rows).sum(0)

        return hook

    with ExitStack() as hooks:
        for name, layer in _layers(block):
            hook = adding(name, layer.in_features, layer.weight.device)
            hooks.callback(layer.register_forward_hook(hook).remove)  # type: ignore[arg-type]
        yield


def _layers(block: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, each) for name, each in block.named_modules() if isinstance(each, nn.Linear)]

"""The baseline's layers lose as little as any of their rank can; a singular moment is retried."""

from __future__ import annotations

import pytest
import torch

from bench.gpu_measuring import Stopwatch
from bench.gpu_model import SHAPES, random_model, random_tokens
from bench.gpu_plain import _advance, compress_plainly, factors, whitening

CPU = torch.device("cpu")


def test_the_error_left_is_the_sum_of_the_dropped_eigenvalues() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 20, generator=generator)
    rows = torch.randn(400, 20, generator=generator) * torch.linspace(0.1, 2, 20)
    moment = (rows.T @ rows).double()
    up, down = factors(weight, whitening(moment), keep=0.8)
    rank = int(12 * 20 * 0.8 / 32)
    assert up.shape == (12, rank)
    assert down.shape == (rank, 20)
    error = (weight - up @ down).double()
    eigenvalues = torch.linalg.eigvalsh(weight.double() @ moment @ weight.double().T)
    left = torch.trace(error @ moment @ error.T)
    assert float(left) == pytest.approx(float(eigenvalues[:-rank].sum()), rel=1e-4)


def test_a_moment_that_is_not_definite_is_moved_until_it_is() -> None:
    root = whitening(torch.diag(torch.tensor([2.0, 1.0, -0.5])))
    expected = torch.tensor([2.5, 1.5, 0.0], dtype=torch.float64).diag() + 1e-6 * torch.eye(3)
    torch.testing.assert_close(root @ root.T, expected, rtol=1e-9, atol=1e-12)


def test_moments_are_those_of_the_layers_inputs() -> None:
    shape = SHAPES["tiny"]
    model = random_model(shape, 1, torch.float32, CPU)
    sequences = random_tokens(shape, 3, shape.length, 1)
    entered = [model.passage.enter(tokens) for tokens in sequences]
    seen: list[torch.Tensor] = []
    with model.weights.hold(0) as block, torch.no_grad():
        states = [state for state, _ in entered]
        block.get_submodule("mlp.down_proj").register_forward_hook(
            lambda _module, args, _output: seen.append(args[0])
        )
        moments = _advance(0, block, states, [calls for _, calls in entered])
    rows = torch.cat(seen).flatten(0, 1)
    torch.testing.assert_close(moments["mlp.down_proj"], rows.T @ rows)
    assert len(moments) == 7


def test_blocks_that_are_not_measured_are_multiplied() -> None:
    shape = SHAPES["tiny"]
    model, watch = random_model(shape, 2, torch.float32, CPU), Stopwatch(CPU)
    compress_plainly(model, random_tokens(shape, 2, shape.length, 1), 1, 0.8, watch, factor=2)
    step = watch.steps["SVD and factors"]
    assert step.seconds == 2 * step.measured_seconds > 0

"""The low-rank layer's outputs are in order, in every precision; costs milliseconds."""

from __future__ import annotations

import pytest
import torch

from workers.compression.lowrank import LowRankLinear


def random_layer(dtype: torch.dtype, *, bias: bool) -> LowRankLinear:
    layer = LowRankLinear(9, 12, 4, bias)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    layer.order = torch.randperm(12, generator=generator).int()
    return layer.to(dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_outputs_are_those_of_the_dense_weight(dtype: torch.dtype, bias: bool) -> None:
    layer = random_layer(dtype, bias=bias)
    basis, rest = layer.basis.weight.double(), layer.rest.weight.double()
    weight = torch.cat((basis, rest @ basis))[layer.order.long()]
    x = torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(1)).to(dtype)
    expected = x.double() @ weight.T + (0 if layer.bias is None else layer.bias.double())
    with torch.no_grad():
        found = layer(x)
    assert found.dtype == dtype
    rounding = 1e-12 if dtype is torch.float64 else 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=4 * rounding)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_can_be_trained_and_computes_the_same_meanwhile(dtype: torch.dtype) -> None:
    layer = random_layer(dtype, bias=True)
    x = torch.randn(2, 9, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.no_grad():
        untrained = layer(x)
    trained = layer(x)
    torch.testing.assert_close(trained, untrained, rtol=0, atol=0)
    trained.double().square().sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().max() > 0
        for parameter in layer.parameters()
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_derivatives_run_forward_too(dtype: torch.dtype) -> None:
    layer = random_layer(dtype, bias=False).requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(1)
    x, direction = (torch.randn(3, 9, generator=generator).to(dtype) for _ in range(2))
    derivative = torch.func.jvp(layer, (x,), (direction,))[1]
    torch.testing.assert_close(derivative, layer(direction))  # it is linear

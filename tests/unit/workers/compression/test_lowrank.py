"""The low-rank layer's outputs are in order, in every precision, and never of older factors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

from workers.compression.candidates import SECOND_PRODUCT
from workers.compression.lowrank import SMALL_WEIGHT, LowRankLinear, is_faster_dense

INPUTS = torch.randn(3, 5, 9, generator=torch.Generator().manual_seed(1))


def random_layer(dtype: torch.dtype, *, bias: bool) -> LowRankLinear:
    layer = LowRankLinear(9, 12, 4, bias)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    layer.order = torch.randperm(12, generator=generator).int()
    return layer.to(dtype)


def dense_weight(layer: LowRankLinear) -> Tensor:
    """The weight that the factors stand for, in float64."""
    basis, rest = layer.basis.weight.detach().double(), layer.rest.weight.detach().double()
    return torch.cat((basis, rest @ basis))[layer.order.long()]


def assert_exact(layer: LowRankLinear) -> None:
    """Check the outputs for INPUTS against the factors as they are now."""
    dtype = layer.rest.weight.dtype
    x = INPUTS.to(dtype)
    expected = x.double() @ dense_weight(layer).T
    if layer.bias is not None:
        expected += layer.bias.detach().double()
    with torch.no_grad():
        found = layer(x)
    assert found.dtype == dtype
    rounding = 1e-12 if dtype is torch.float64 else 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=4 * rounding)


def products(layer: LowRankLinear) -> int:
    """The number of matrix products by which a layer in use computes its outputs."""
    x = torch.ones(2, layer.basis.in_features, dtype=layer.rest.weight.dtype)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        layer(x)
        linear = Mock(wraps=nn.functional.linear)
        patch.setattr(nn.functional, "linear", linear)
        layer(x)
    return linear.call_count


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_outputs_are_those_of_the_dense_weight(
    dtype: torch.dtype, bias: bool, training: bool
) -> None:
    layer = random_layer(dtype, bias=bias).train(training)
    assert_exact(layer)
    assert products(layer) == (2 if training else 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_can_be_trained_and_computes_the_same_meanwhile(dtype: torch.dtype) -> None:
    layer = random_layer(dtype, bias=True).train()
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


def another(layer: LowRankLinear) -> dict[str, Tensor]:
    """The state of another layer like this one."""
    generator = torch.Generator().manual_seed(2)
    state = {
        name: torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        for name, tensor in layer.state_dict().items()
    }
    return state | {"order": torch.randperm(12, generator=generator).int()}


def load_in_place(layer: LowRankLinear) -> None:
    layer.load_state_dict(another(layer))


def load_other_tensors(layer: LowRankLinear) -> None:
    layer.load_state_dict(another(layer), assign=True)


def scale_basis(layer: LowRankLinear) -> None:
    with torch.no_grad():
        layer.basis.weight.mul_(2)


def scale_rest(layer: LowRankLinear) -> None:
    with torch.no_grad():
        layer.rest.weight.mul_(2)


def put_parameter(layer: LowRankLinear) -> None:
    layer.basis.weight = nn.Parameter(layer.basis.weight.detach() * 2)


def put_data(layer: LowRankLinear) -> None:
    layer.rest.weight.data = layer.rest.weight.detach() * 2


def change_precision(layer: LowRankLinear) -> None:
    layer.half().float()  # perhaps at the addresses that the factors had before


def train(layer: LowRankLinear) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.01)
    layer(INPUTS).square().mean().backward()
    optimizer.step()


def train_through_data(layer: LowRankLinear) -> None:
    layer.train()
    with torch.no_grad():
        layer(INPUTS)
    layer.eval()
    layer.rest.weight.data.mul_(2)


@pytest.mark.parametrize(
    "change",
    [
        load_in_place,
        load_other_tensors,
        scale_basis,
        scale_rest,
        put_parameter,
        put_data,
        change_precision,
        train,
        train_through_data,
    ],
)
def test_a_product_is_made_anew_after_a_change(change: Callable[[LowRankLinear], None]) -> None:
    layer = random_layer(torch.float32, bias=True).eval()
    assert_exact(layer)
    before = dense_weight(layer)
    change(layer)
    assert not torch.equal(dense_weight(layer), before)
    assert_exact(layer)
    assert products(layer) == 1


def test_a_product_is_no_part_of_the_state() -> None:
    layer = random_layer(torch.float32, bias=True).eval()
    fresh, names = pickle.dumps(layer), layer.state_dict().keys()
    assert_exact(layer)
    assert layer.state_dict().keys() == names
    assert names == {"basis.weight", "rest.weight", "order", "bias"}
    assert len(pickle.dumps(layer)) == len(fresh)
    assert len([*layer.buffers()]) == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_has_a_product_of_its_own(copied: Callable[[LowRankLinear], LowRankLinear]) -> None:
    layer = random_layer(torch.float32, bias=True).eval()
    assert_exact(layer)
    other = copied(layer)
    scale_rest(other)
    assert_exact(other)
    assert_exact(layer)
    assert products(other) == products(layer) == 1


def test_only_small_layers_that_save_little_are_multiplied_out() -> None:
    side = 1024
    little = side - int(SECOND_PRODUCT**0.5)  # the largest rank that saves enough
    assert is_faster_dense(side, side, little + 1)
    assert not is_faster_dense(side, side, little - 1)
    assert is_faster_dense(side, side, little - 1, joined=True)
    assert not is_faster_dense(side, side, side - int((2 * SECOND_PRODUCT) ** 0.5), joined=True)
    assert is_faster_dense(side, SMALL_WEIGHT // side, 1000)
    assert not is_faster_dense(side, SMALL_WEIGHT // side + 1, 1000)
    assert products(LowRankLinear(side, side, little + 1, bias=False).eval()) == 1
    assert products(LowRankLinear(side, side, little - 1, bias=False).eval()) == 2


def test_a_compiled_graph_has_the_factors() -> None:
    layer = random_layer(torch.float32, bias=True).eval()
    assert_exact(layer)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    with torch.no_grad():
        torch.compile(layer, backend=backend, fullgraph=True)(INPUTS)
    (graph,) = graphs
    assert graph.code.count(".linear(") == 2, graph.code


def test_offloaded_factors_are_left_where_they_are() -> None:
    layer = random_layer(torch.float32, bias=False).eval()
    with torch.no_grad():
        expected = layer(INPUTS)
        cpu_offload(layer, execution_device=torch.device("cpu"))
        assert layer.basis.weight.is_meta
        torch.testing.assert_close(layer(INPUTS), expected)
    assert products(layer) == 2


class Quantized(nn.Module):
    """An engine's layer, which has no weight of its own."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) * 3
        return y


def test_a_factor_of_another_class_is_used_as_such() -> None:
    layer = random_layer(torch.float32, bias=False).eval()
    with torch.no_grad():
        before = layer(INPUTS)
        layer.basis = Quantized(layer.basis)  # type: ignore[assignment]
        torch.testing.assert_close(layer(INPUTS), before * 3)


def test_parameters_without_versions_stay_factors() -> None:
    with torch.inference_mode():
        layer = random_layer(torch.float32, bias=False).eval()
        layer(INPUTS)
        layer.basis.weight.mul_(2)
    assert_exact(layer)


def test_a_product_is_exact_under_autocast() -> None:
    layer = random_layer(torch.float32, bias=False).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer(INPUTS)
    assert_exact(layer)


def test_threads_may_share_a_layer() -> None:
    layer = random_layer(torch.float32, bias=True).eval()
    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(assert_exact, layer) for _ in range(32)]:
            done.result()

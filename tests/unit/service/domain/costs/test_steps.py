"""The costs of a job's steps, and how they follow from its model, specification and cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.scale import CONFIGURATIONS, SPEC, cluster
from service.domain.costs import steps
from service.domain.costs.cluster import Cost
from service.domain.costs.shapes import model_shapes
from service.domain.costs.steps import step_costs
from service.domain.spec import JobSpec
from service.domain.states import Step
from tests.fixtures.models import ARCHITECTURES, tiny_model
from workers.actors.calibrator import SHARE_OF_FREE_MEMORY
from workers.attempt.schedule import IN_FLIGHT_PER_QUEUE
from workers.attempt.targets import MAX_PROBES
from workers.compression.unfuse import unfuse
from workers.model.blocks import PIECES_KEPT
from workers.sweeps.calibration import LOGITS_BYTES
from workers.sweeps.passage import Passage

LLAMA = model_shapes(CONFIGURATIONS["Llama-2-7B"])


def changed(**calibration: int) -> JobSpec:
    return SPEC.model_copy(update={"calibration": SPEC.calibration.model_copy(update=calibration)})


def test_constants_are_the_engine_s() -> None:
    assert steps.SHARE_OF_FREE_MEMORY == SHARE_OF_FREE_MEMORY
    assert steps.SOLVES_AT_ONCE == IN_FLIGHT_PER_QUEUE
    assert steps.PROBES_PER_QUALITY == MAX_PROBES
    assert steps.PIECES_KEPT == PIECES_KEPT
    assert steps.LOGITS_BYTES == 3 * LOGITS_BYTES


def test_a_token_costs_three_forward_passes_and_the_moments() -> None:
    cost = step_costs(LLAMA, SPEC, cluster(1))[Step.CALIBRATE]
    tokens = SPEC.calibration.sequences * SPEC.calibration.sequence_length
    sided = 2 * 2 * 4096 * 11008 * 32  # gate and up: the gradient's way to the input
    head = 2 * 2 * 4096 * 32000
    attention = 2 * 2048 * 2 * 4096 * 4.5 * 32
    products = 3 * 2 * (LLAMA.linear) + sided + head + attention
    assert cost.model_operations == pytest.approx(tokens * products, rel=1e-9)


def test_arithmetic_divides_among_workers_and_loading_does_not() -> None:
    one, eight = (step_costs(LLAMA, SPEC, cluster(n))[Step.CALIBRATE] for n in (1, 8))
    assert one.model_operations == 8 * eight.model_operations
    assert one.loaded == eight.loaded == 2 * LLAMA.parameters * LLAMA.stored_bytes


def test_boundaries_fill_the_device_then_the_host_then_files_then_are_spaced() -> None:
    def calibration(device: int, host: int, disk: int) -> Cost:
        machine = replace(cluster(1), device_memory=device, host_memory=host, disk=disk)
        return step_costs(LLAMA, SPEC, machine)[Step.CALIBRATE]

    ample = calibration(10**12, 10**12, 10**12)
    on_host = calibration(0, 10**12, 10**12)
    in_files = calibration(0, 0, 10**12)
    spaced = calibration(0, 0, 10**11)
    boundaries = 33 * 128 * 2048 * 4096 * 2
    assert ample.device_held - on_host.device_held == boundaries
    assert on_host.host_held - ample.host_held == boundaries
    assert in_files.files_held == boundaries
    assert spaced.files_held <= 10**11 / 2 < boundaries
    assert spaced.model_operations > in_files.model_operations
    assert spaced.loaded > in_files.loaded


def test_a_method_without_gradients_needs_one_sweep() -> None:
    spec = SPEC.model_copy(update={"method": "afm"})
    cost = step_costs(LLAMA, spec, cluster(1))[Step.CALIBRATE]
    assert cost.loaded == LLAMA.parameters * LLAMA.stored_bytes


def test_what_is_exceeded_is_named() -> None:
    machine = cluster(8)
    assert step_costs(LLAMA, SPEC, machine)[Step.CALIBRATE].exceeded(machine) == []
    small = replace(machine, device_memory=10**9, host_memory=10**9, disk=1)
    assert step_costs(LLAMA, SPEC, small)[Step.CALIBRATE].exceeded(small) == [
        "GPU",
        "host",
        "files",
    ]
    without = replace(small, gpus=False)
    assert "GPU" not in step_costs(LLAMA, SPEC, without)[Step.CALIBRATE].exceeded(without)


def test_steps_that_take_turns_add_work_and_share_memory() -> None:
    total = Cost(loaded=1, device_held=5) + Cost(loaded=2, device_held=3)
    assert total == Cost(loaded=3, device_held=5)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mixtral"])
def test_activations_are_those_that_autograd_saves(name: str) -> None:
    model = tiny_model(ARCHITECTURES[name])
    unfuse(model)
    passage = Passage(model)
    tokens = torch.randint(258, (2, 64), generator=torch.Generator().manual_seed(0))
    hidden, calls = passage.enter(tokens)
    weights = {each.data_ptr() for each in model.parameters()}
    saved: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        calls[0](passage.blocks[0], hidden.detach().requires_grad_())
    found = sum(each.untyped_storage().nbytes() for each in saved.values())
    shapes = model_shapes(ARCHITECTURES[name].to_dict() | {"dtype": "float32"})
    numbers = steps.activations(shapes.blocks[0])
    assert found == pytest.approx(4 * tokens.numel() * numbers, rel=0.15)

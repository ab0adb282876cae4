"""The costs of a job's steps, and how they follow from its model, specification and cluster."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.scale import CONFIGURATIONS, SPEC, cluster
from service.domain.costs import cluster as shares
from service.domain.costs import steps
from service.domain.costs.cluster import Cost
from service.domain.costs.formulas import block_statistics
from service.domain.costs.machines import cluster_of
from service.domain.costs.shapes import model_shapes
from service.domain.costs.steps import peak_driver_bytes, peak_worker_bytes, step_costs
from service.domain.placement import Placement
from service.domain.spec.job import JobSpec
from service.domain.spec.targets import ByteTarget, QualityTarget
from service.domain.states import Step
from service.storage import clients, s3
from tests.fixtures.models import ARCHITECTURES, tiny_model
from workers.actors import assembler, room, worker
from workers.attempt.loss_sweeps import BLOCKS_IN_FLIGHT
from workers.attempt.schedule import IN_FLIGHT_PER_QUEUE
from workers.attempt.targets import MAX_PROBES
from workers.compression.shapes import VocabularyMatrix
from workers.compression.unfuse import unfuse
from workers.evaluation import speed
from workers.model.blocks import PIECES_KEPT
from workers.sweeps.passage import LOGITS_BYTES, Passage

LLAMA = model_shapes(CONFIGURATIONS["Llama-2-7B"])
DEEPER = model_shapes(CONFIGURATIONS["Llama-2-7B"] | {"num_hidden_layers": 64})
SIDES = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8}
SMALL = model_shapes(
    CONFIGURATIONS["Llama-2-7B"] | SIDES | {"num_key_value_heads": 8, "num_hidden_layers": 12}
)
BLOCKS = LLAMA.inside * LLAMA.stored_bytes
LAYERS = LLAMA.linear * LLAMA.stored_bytes


def test_constants_are_the_engine_s() -> None:
    assert shares.SHARE_FOR_HIDDEN_STATES == room.SHARE_FOR_HIDDEN_STATES
    assert shares.SHARE_OF_GPU == room.SHARE_OF_GPU
    assert shares.SHARE_OF_DISK == room.SHARE_OF_DISK
    assert shares.SHARE_FOR_A_MODEL == room.SHARE_FOR_A_MODEL
    assert steps.BLOCKS_IN_FLIGHT == BLOCKS_IN_FLIGHT
    assert steps.PREFETCHED_LAYERS == assembler.PREFETCHED_LAYERS
    assert steps.CACHED_BYTES == worker.CACHED_BYTES
    assert clients.DOWNLOADS * s3._TRANSFER.multipart_chunksize == steps.UPLOADED_BYTES
    assert steps.SOLVES_AT_ONCE == IN_FLIGHT_PER_QUEUE
    assert steps.PROBES_PER_QUALITY == MAX_PROBES
    assert steps.PIECES_KEPT == PIECES_KEPT
    assert steps.WARM_UP_TOKENS == speed.WARM_UP_TOKENS
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
    assert one.loaded == eight.loaded == 2 * BLOCKS


def test_boundaries_fill_the_device_then_the_host_then_files_then_are_spaced() -> None:
    def calibration(device: int, host: int, disk: int) -> Cost:
        machine = replace(cluster(1), device_memory=device, worker_memory=host, disk=disk)
        return step_costs(LLAMA, SPEC, machine)[Step.CALIBRATE]

    ample = calibration(10**12, 10**11, 10**12)
    on_host = calibration(0, 10**11, 10**12)
    in_files = calibration(0, 0, 10**12)
    spaced = calibration(0, 0, 10**11)
    boundaries = 33 * 128 * 2048 * 4096 * 2
    assert ample.device_held - on_host.device_held == boundaries
    assert on_host.host_held - ample.host_held == boundaries
    solutions = in_files.files_held - boundaries
    assert on_host.host_held - in_files.host_held == boundaries + solutions
    assert solutions == step_costs(LLAMA, SPEC, cluster(1))[Step.SOLVE].network_moved
    assert spaced.files_held - solutions <= 10**11 / 2 < boundaries
    assert spaced.model_operations > in_files.model_operations
    assert spaced.loaded > in_files.loaded


@pytest.mark.parametrize("step", [Step.ALLOCATE, Step.ASSEMBLE, Step.EVALUATE])
def test_measuring_takes_no_more_memory_for_a_deeper_model(step: Step) -> None:
    """The last gradients of the calibration are as large, and the solutions fill their budget."""
    machine = replace(cluster(1), worker_memory=10**9)
    spec = with_curve(0.5, 0.6)
    one, other = (step_costs(model, spec, machine)[step] for model in (LLAMA, DEEPER))
    assert one.device_held == other.device_held
    assert one.host_held == other.host_held
    assert one.loaded < other.loaded


def with_curve(*sizes: float, **changes: object) -> JobSpec:
    evaluation = SPEC.evaluation.model_copy(update={"curve": sizes})
    return SPEC.model_copy(update={"evaluation": evaluation} | changes)


def test_all_sizes_share_a_sweep() -> None:
    one, three = (
        step_costs(LLAMA, with_curve(*sizes), cluster(1))[Step.ALLOCATE]
        for sizes in ([0.5], [0.5, 0.6, 0.7])
    )
    assert one.loaded == BLOCKS + LAYERS  # of the owner, to make low-rank layers
    assert three.loaded == BLOCKS + 3 * LAYERS
    assert three.model_operations == 3 * one.model_operations


def test_the_source_in_another_precision_has_a_sweep_of_its_own() -> None:
    same, apart = (
        step_costs(LLAMA, with_curve(dtype=dtype), cluster(1))[Step.EVALUATE]
        for dtype in ("bfloat16", "float16")
    )
    assert same.loaded == BLOCKS + LAYERS
    assert apart.loaded == 2 * BLOCKS + LAYERS


def test_a_quality_is_found_by_a_sweep_of_the_dense_model_and_one_of_each_probe() -> None:
    target = QualityTarget(max_perplexity_increase=0.1)
    spec = SPEC.model_copy(update={"targets": (target,)})
    cost = step_costs(LLAMA, spec, cluster(1))[Step.ALLOCATE]
    assert cost.loaded == (1 + MAX_PROBES) * BLOCKS + MAX_PROBES * LAYERS


def test_a_batch_is_measured_by_one_worker() -> None:
    eight, more = (step_costs(LLAMA, SPEC, cluster(n))[Step.EVALUATE] for n in (8, 64))
    assert eight.model_operations == more.model_operations  # there are eight batches


def test_a_whole_model_takes_what_a_machine_has_for_it() -> None:
    ample, small = (
        step_costs(LLAMA, SPEC, replace(cluster(1), worker_memory=0, model_memory=memory))
        for memory in (10**12, 10**9)
    )
    assert ample[Step.PROVE].host_held == 2 * LLAMA.parameters
    assert small[Step.PROVE].host_held == 10**9


def test_a_rounded_embedding_makes_a_smaller_artifact_and_takes_the_memory_of_one() -> None:
    rounding = ByteTarget(bytes_fraction=0.5, precisions="transformers", embedding_bits=8)
    targets = [rounding, rounding.model_copy(update={"embedding_bits": 16})]
    one, other = (
        step_costs(LLAMA, SPEC.model_copy(update={"targets": (each,)}), cluster(1))
        for each in targets
    )
    saved = other[Step.PUBLISH].network_moved - one[Step.PUBLISH].network_moved
    matrices = (
        VocabularyMatrix(("embedding",), 32000, 4096),
        VocabularyMatrix(("head",), 32000, 4096),
    )
    assert saved == sum(2 * 32000 * 4096 - each.stored_bytes(2) for each in matrices)
    more = one[Step.EVALUATE].device_held - other[Step.EVALUATE].device_held
    assert more == 2 * 32000 * 4096 * 2


def test_a_worker_s_peak_grows_with_the_depth_by_objects_alone() -> None:
    machine = replace(cluster(1), gpus=False, worker_memory=10**9, model_memory=10**12)
    peak = peak_worker_bytes(LLAMA, SPEC, machine)
    deeper = peak_worker_bytes(DEEPER, SPEC, machine)
    assert deeper - peak == pytest.approx(32 * steps.OBJECTS_BYTES)
    blocks = 2 * LLAMA.blocks[0].parameters * 4
    statistics = 2 * block_statistics(LLAMA.blocks[0], SPEC.method) * 8
    assert peak > LLAMA.outside * 4 + blocks + statistics + 2 * 10**9


def test_heaps_keep_some_of_what_a_calibration_frees_unless_matrices_are_mapped() -> None:
    kept = replace(CORES, host_memory=10**12)
    mapped = replace(kept, worker_memory=int(kept.states_memory))
    few = SPEC.calibration.model_copy(update={"sequences": 8, "sequence_length": 64})
    spec = SPEC.model_copy(update={"calibration": few})  # what comes later takes more
    costs = step_costs(SMALL, spec, kept)
    assert costs == step_costs(SMALL, spec, mapped)
    more = peak_worker_bytes(SMALL, spec, kept) - peak_worker_bytes(SMALL, spec, mapped)
    assert 0 < more < costs[Step.CALIBRATE].in_host(kept)


def test_the_last_model_that_generated_stays_while_artifacts_are_published() -> None:
    evaluation = SPEC.evaluation.model_copy(update={"decode_tokens": 32})
    spec = SPEC.model_copy(update={"evaluation": evaluation})
    for machine, held in (
        (CORES, 4 * (LLAMA.parameters + LLAMA.linear)),
        (cluster(1), 2 * LLAMA.parameters),
    ):
        without, generating = (
            step_costs(LLAMA, each, machine)[Step.PUBLISH] for each in (SPEC, spec)
        )
        assert without.device_held == 0
        assert generating.device_held == min(held, machine.whole_model_memory)


def test_a_driver_holds_spectra_and_no_weights() -> None:
    spectra = 8 * 32 * 7 * 4096
    grown = peak_driver_bytes(DEEPER) - peak_driver_bytes(LLAMA)
    assert spectra < grown < 10 * spectra + 32 * 10**6
    assert grown < BLOCKS / 100


def test_a_method_without_gradients_needs_one_sweep() -> None:
    spec = SPEC.model_copy(update={"method": "afm"})
    cost = step_costs(LLAMA, spec, cluster(1))[Step.CALIBRATE]
    assert cost.loaded == BLOCKS


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


CORES = cluster_of(Placement(1, 1, 0), [])


def test_the_cores_that_compute_load_as_well_and_a_gpu_does_not() -> None:
    operations = CORES.float32_flops * CORES.products_share
    cost = Cost(
        float32_operations=operations, loaded=0.5e9, memory_moved=10e9, disk_moved=1e9, calls=10
    )
    assert cost.whole_seconds(CORES) == pytest.approx(1 + 1 + 1 + 0.01)
    assert cost.whole_seconds(replace(CORES, disk_bandwidth=1e8)) == pytest.approx(10)
    on_gpu = cluster(1)
    assert cost.whole_seconds(on_gpu) == max(cost.seconds(on_gpu).values())


def test_processes_start_before_anything_else() -> None:
    cost = Cost(loaded=10e9, starts=2)
    for machine in (CORES, cluster(1)):
        loading = 10e9 / machine.loading_bandwidth
        assert cost.whole_seconds(machine) == pytest.approx(2 * machine.start_seconds + loading)


def test_low_rank_layers_that_are_all_cached_are_made_once() -> None:
    room, little = (
        step_costs(LLAMA, SPEC, replace(cluster(64), worker_memory=memory))
        for memory in (10**12, 10**6)
    )
    assert little[Step.ASSEMBLE].float64_operations == pytest.approx(
        2 * room[Step.ASSEMBLE].float64_operations
    )
    assert room[Step.EVALUATE].float64_operations == 0
    assert little[Step.EVALUATE].float64_operations > 0
    one = step_costs(LLAMA, SPEC, replace(cluster(1), worker_memory=10**12))
    assert one[Step.EVALUATE].float64_operations > 0  # more than the cache's limit


def test_decoding_loads_every_model_whole_and_reads_it_for_every_token() -> None:
    evaluation = SPEC.evaluation.model_copy(update={"decode_tokens": 32})
    spec = SPEC.model_copy(update={"evaluation": evaluation})
    without, decoding = (
        step_costs(LLAMA, each, cluster(1))[Step.EVALUATE] for each in (SPEC, spec)
    )
    artifact = 2 * (LLAMA.parameters - 0.2 * LLAMA.linear)
    loaded = 2 * LLAMA.parameters + artifact
    assert decoding.loaded - without.loaded == pytest.approx(loaded)
    assert decoding.memory_moved - without.memory_moved == pytest.approx(36 * loaded)
    assert decoding.calls - without.calls == 36 * 2 * 32


def test_a_gguf_file_is_expanded_before_it_is_loaded() -> None:
    file = SPEC.model.model_copy(update={"path": "/model.gguf"})
    spec = SPEC.model_copy(update={"model": file})
    folder, expanded = (
        step_costs(LLAMA, each, cluster(1))[Step.RESOLVE].loaded for each in (SPEC, spec)
    )
    assert folder == LLAMA.parameters * 2
    assert expanded == (1 + steps.EXPANDING_LOADS) * folder


def test_a_job_without_bfloat16_multiplies_in_float32_on_a_cpu() -> None:
    exact, mixed = (
        step_costs(LLAMA, SPEC.model_copy(update={"mixed_precision": each}), CORES)[Step.CALIBRATE]
        for each in ("no", "auto")
    )
    assert exact.model_operations == 0
    assert exact.float32_operations == mixed.float32_operations + mixed.model_operations
    assert step_costs(LLAMA, SPEC, cluster(1))[Step.CALIBRATE].model_operations > 0


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

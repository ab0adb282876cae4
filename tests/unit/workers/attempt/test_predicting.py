"""An attempt predicts its steps as an estimate does, on the machines that its workers have."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.scale import CONFIGURATIONS, SPEC
from service.domain.costs.shapes import model_shapes
from service.domain.placement import Placement
from service.domain.spec.calibration import Recovery
from service.domain.spec.evaluation import MultipleChoice
from service.domain.spec.targets import ByteTarget, SizeTarget, Target
from service.domain.states import Step
from service.estimates.speeds import Measured
from service.settings import Settings
from workers.actors.replies import WorkerPlace
from workers.actors.versions import own_versions
from workers.attempt.predicting import NO_SHAPES, NO_TASKS, cluster_here, predict

LLAMA = model_shapes(CONFIGURATIONS["Llama-2-7B"])
PLACE = WorkerPlace(
    worker=0,
    host="host",
    node="a",
    pid=1,
    device="cuda",
    kind="H100",
    threads=4,
    mixed_precision=True,
    gpu_ids=["0"],
    cuda_visible_devices="0",
    versions=own_versions(),
    memory_bytes=10**12,
    disk_bytes=10**13,
    gpu_bytes=80 * 10**9,
)
PLACEMENT = Placement(3, 4, 1, "H100")
PLACES = [
    PLACE,
    replace(PLACE, worker=1, gpu_bytes=40 * 10**9),
    replace(PLACE, worker=2, node="b", memory_bytes=10**11),
]
HERE = cluster_here(PLACEMENT, PLACES, Settings(worker_memory_bytes=5))


def test_the_cluster_is_that_of_the_workers_machines() -> None:
    assert (HERE.workers, HERE.workers_per_machine, HERE.gpus) == (3, 2, True)
    assert (HERE.host_memory, HERE.disk) == (10**11, 10**13)
    assert HERE.worker_memory == 5


def test_steps_are_predicted_by_the_model_and_by_jobs() -> None:
    alone = predict(LLAMA, SPEC, PLACEMENT, HERE, [], {})
    assert alone.seconds.keys() == set(SPEC.steps) == set(Step) - {Step.RECOVER}
    assert alone.modelled.keys() == set(Step)
    for step, seconds in alone.seconds.items():
        assert seconds == pytest.approx(alone.modelled[step], abs=0.001)
    twice = Measured(alone.modelled, {step: 2 * each for step, each in alone.modelled.items()})
    resumed = {Step.CALIBRATE: 0.5}
    corrected = predict(LLAMA, SPEC, PLACEMENT, HERE, [twice], resumed)
    assert corrected.modelled == alone.modelled
    assert corrected.resumed == resumed
    for step, seconds in corrected.seconds.items():
        assert seconds == pytest.approx(2 * alone.modelled[step], abs=0.001)
    assert alone.unknown is None
    assert Step.CALIBRATE in alone.curves


@pytest.mark.parametrize("target", [SizeTarget(keep=0.8), ByteTarget(bytes_fraction=0.3)])
def test_recovery_takes_time(target: Target) -> None:
    spec = SPEC.model_copy(update={"recovery": Recovery(epochs=2), "targets": (target,)})
    found, twice = (
        predict(LLAMA, each, PLACEMENT, HERE, [], {}).seconds[Step.RECOVER]
        for each in (spec, spec.model_copy(update={"recovery": Recovery(epochs=4)}))
    )
    assert found
    assert twice
    assert found < twice <= 2.001 * found


def test_the_time_of_tasks_is_not_known() -> None:
    task = MultipleChoice.model_validate(
        {"kind": "multiple_choice", "name": "t", "data": {"source": "local", "path": "/p"}}
    )
    evaluation = SPEC.evaluation.model_copy(update={"tasks": (task,)})
    spec = SPEC.model_copy(update={"evaluation": evaluation})
    found = predict(LLAMA, spec, PLACEMENT, HERE, [], {})
    assert (found.seconds[Step.EVALUATE], found.unknown) == (None, NO_TASKS)
    assert found.seconds[Step.CALIBRATE]


def test_an_unknown_architecture_and_a_job_without_evaluation() -> None:
    evaluation = SPEC.evaluation.model_copy(update={"enabled": False})
    spec = SPEC.model_copy(update={"evaluation": evaluation})
    found = predict(None, spec, PLACEMENT, HERE, [], {})
    assert found.unknown == NO_SHAPES
    assert found.seconds == dict.fromkeys(set(Step) - {Step.EVALUATE, Step.RECOVER})
    assert found.modelled == {}

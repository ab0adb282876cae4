"""Predicts the steps of an attempt, once it has its workers and its model.

By the same cost model as estimates, corrected by the same jobs. The machines are those that the
workers run on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from service.client.versions import VERSION
from service.domain.costs.cluster import Cluster
from service.domain.costs.machines import cluster_of
from service.domain.costs.shapes import Model
from service.domain.costs.steps import step_costs
from service.domain.costs.times import curves, step_times
from service.domain.placement import Machine, Placement
from service.domain.prediction import Prediction
from service.domain.spec.job import JobSpec
from service.domain.states import Step
from service.estimates.speeds import Measured, comparable, corrected
from service.settings import Settings
from workers.actors.replies import WorkerPlace

NO_SHAPES = "The shapes of this architecture are not known."
NO_TASKS = "The time of the evaluation's tasks is not predicted."


def cluster_here(
    placement: Placement, places: Sequence[WorkerPlace], settings: Settings
) -> Cluster:
    """The cluster of these workers, at the speeds that the cost model assumes."""
    together = Counter(place.node for place in places)
    machines = {
        place.node: Machine(
            {
                "CPU": placement.cpus * together[place.node],
                "GPU": placement.gpus * together[place.node],
            },
            placement.accelerator_type,
            memory_bytes=place.memory_bytes,
            disk_bytes=place.disk_bytes,
            gpu_bytes=place.gpu_bytes,
        )
        for place in places
    }
    memory = settings.worker_memory_bytes, settings.model_memory_bytes
    return cluster_of(placement, list(machines.values()), *memory)


def predict(
    model: Model | None,
    spec: JobSpec,
    placement: Placement,
    cluster: Cluster,
    measured: Sequence[Measured],
    resumed: Mapping[Step, float],
) -> Prediction:
    """The seconds of every step, by the cost model and the jobs that were measured.

    `resumed` has the shares of the steps that earlier attempts have done. What cannot be predicted
    is None, with the reason.
    """
    if model is None:
        unknown: dict[Step, float | None] = dict.fromkeys(spec.steps)
        return Prediction(placement, VERSION, seconds=unknown, unknown=NO_SHAPES)
    times = step_times(model, step_costs(model, spec, cluster), cluster)
    modelled = {step: times[step].seconds for step in times}
    seconds = corrected(modelled, comparable(modelled, measured))
    tasks = bool(spec.evaluation.tasks)
    return Prediction(
        placement,
        VERSION,
        modelled,
        {
            step: None if tasks and step is Step.EVALUATE else round(seconds[step], 3)
            for step in spec.steps
        },
        resumed,
        curves(model, spec, cluster, times),
        NO_TASKS if tasks else None,
    )

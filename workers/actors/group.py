"""The actors of one attempt, in one placement group; they end with its driver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from service.domain.spec import JobSpec
from service.errors import ClusterUnavailable
from workers.actors.interface import ASSEMBLING, SERVING, Worker
from workers.actors.placement import Placement, Resources, fits

WAITING_SECONDS = 30
"""How long other jobs may hold the resources before the job's history records the wait."""


def machines() -> list[Resources]:
    """The resources of each machine that is alive in the cluster."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"]]


class ActorGroup:
    """The workers, one per bundle; a context manager.

    Actors are never detached, and their names in Ray's dashboard begin with the attempt's. On
    entry the group waits for resources that other jobs hold, and calls `on_waiting` once if that
    takes long. Raises ClusterUnavailable if the cluster loses the machines for it.
    """

    def __init__(
        self, attempt: str, spec: JobSpec, placement: Placement, on_waiting: Callable[[], None]
    ) -> None:
        self._attempt = attempt
        self._spec = spec
        self.placement = placement
        self._on_waiting = on_waiting
        self._group: PlacementGroup = placement_group(placement.bundles, name=attempt)
        self.workers: list[Any] = []

    def __enter__(self) -> ActorGroup:
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        self.workers = [self._worker(number) for number in range(self.placement.workers)]
        return self

    def __exit__(self, *_: object) -> None:
        remove_placement_group(self._group)

    def _wait(self) -> None:
        reported = False
        while not self._group.wait(WAITING_SECONDS):
            if not fits(self.placement, machines()):
                raise ClusterUnavailable(
                    f"The cluster no longer has the machines for {self.placement.bundles}."
                )
            if not reported:
                self._on_waiting()
                reported = True

    def _worker(self, number: int) -> Any:
        placement = self.placement
        return (
            ray.remote(concurrency_groups={SERVING: 1, ASSEMBLING: 1})(Worker)  # type: ignore[call-overload]
            .options(
                name=f"{self._attempt}/worker-{number}",
                num_cpus=placement.cpus,
                num_gpus=placement.gpus,
                scheduling_strategy=PlacementGroupSchedulingStrategy(
                    placement_group=self._group, placement_group_bundle_index=number
                ),
            )
            .remote(self._spec, self._attempt, number, placement.cpus, placement.gpus)
        )

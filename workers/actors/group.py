"""The actors of one attempt, in one placement group; they end with its driver."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from service.domain.placement import ACCELERATOR_LABEL, Placement, Resources, fits, room
from service.domain.spec.job import JobSpec
from service.domain.tenant import EVERY_PLACE, Places
from service.errors import ClusterUnavailable, InsufficientResources
from service.log_lines import log_fields
from workers.actors.autoscaling import autoscales, refuses
from workers.actors.interface import ASSEMBLING, SERVING, Worker
from workers.actors.placement import POLL_SECONDS

WAITING_SECONDS = 30
"""How long other jobs may hold the resources before the job's history records the wait."""


def machines(accelerator_type: str | None = None) -> list[Resources]:
    """The resources of each machine that is alive in the cluster, of one type if it is given."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [
        node["Resources"]
        for node in nodes
        if node["Alive"] and accelerator_type in (None, node["Labels"].get(ACCELERATOR_LABEL))
    ]


class ActorGroup:
    """The workers, one per bundle; a context manager.

    Actors are never detached, and their names in Ray's dashboard begin with the attempt's. On
    entry the group waits for machines that the cluster's autoscaler adds, up to
    `patience_seconds`, and calls `on_growing` with the number of workers that have room already.
    Then it waits for resources that other jobs hold, and calls `on_waiting` once if that takes
    long. Raises InsufficientResources if the autoscaler does not add the machines, and
    ClusterUnavailable if the cluster loses the machines for it.
    """

    def __init__(
        self,
        attempt: str,
        spec: JobSpec,
        placement: Placement,
        patience_seconds: float,
        on_growing: Callable[[int], None],
        on_waiting: Callable[[], None],
        places: Places = EVERY_PLACE,
    ) -> None:
        self._attempt = attempt
        self._spec = spec
        self._places = places
        self.placement = placement
        self._patience_seconds = patience_seconds
        self._on_growing = on_growing
        self._on_waiting = on_waiting
        self._group: PlacementGroup = placement_group(
            placement.bundles, name=attempt, bundle_label_selector=placement.labels
        )
        self.workers: list[Any] = []

    def __enter__(self) -> ActorGroup:
        try:
            if autoscales():
                self._grow()
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        self.workers = [self._worker(number) for number in range(self.placement.workers)]
        return self

    def __exit__(self, *_: object) -> None:
        remove_placement_group(self._group)

    def _grow(self) -> None:
        """Wait until there are machines for all workers, whoever uses them."""
        deadline = time.monotonic() + self._patience_seconds
        reported = None
        while not fits(self.placement, nodes := self._machines()):
            ready = room(self.placement, nodes)
            if time.monotonic() >= deadline:
                raise self._insufficient(ready, "the autoscaler has not added the others in time")
            if refuses(self._group):
                raise self._insufficient(ready, "the autoscaler cannot add the others")
            if ready != reported:
                self._on_growing(ready)
                reported = ready
            self._group.wait(POLL_SECONDS)

    def _insufficient(self, ready: int, reason: str) -> InsufficientResources:
        wanted = self.placement.count(self.placement.workers)
        return InsufficientResources(
            f"the cluster has machines for {ready} of {wanted} with {self.placement.bundles[0]} "
            f"each; {reason}",
            param="workers",
        )

    def _machines(self) -> list[Resources]:
        return machines(self.placement.accelerator_type)

    def _wait(self) -> None:
        reported = False
        while not self._group.wait(WAITING_SECONDS):
            if not fits(self.placement, self._machines()):
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
            .remote(
                self._spec,
                self._attempt,
                number,
                placement.cpus,
                placement.gpus,
                self._places,
                log_fields(),
            )
        )

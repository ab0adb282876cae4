"""Decides which placement an attempt takes, and which worker solves which layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from service.domain.placement import Placement, Resources, fits
from service.errors import InsufficientResources
from workers.compression.shapes import InputGroup

POLL_SECONDS = 2.0
"""The pause between two checks for machines that may return."""

Item = TypeVar("Item")


def choose_placement(
    earlier: Placement | None,
    plan: Callable[[Sequence[Resources]], Placement],
    machines: Callable[[], Sequence[Resources]],
    patience_seconds: float,
) -> Placement:
    """Choose the placement of the job's `earlier` attempt if it fits in time, or else a new one.

    A lost machine, or a restarted Ray, may return soon, and an attempt with the same placement
    resumes where the earlier one stopped. So this waits up to `patience_seconds` for the machines
    of the earlier placement, or on a job's first attempt for any machine. Raises
    InsufficientResources.
    """
    deadline = time.monotonic() + patience_seconds
    nodes = machines()
    while not _available(earlier, nodes) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        nodes = machines()
    if earlier is not None and fits(earlier, nodes):
        return earlier
    placement = plan(nodes)
    if earlier is not None and earlier.gpus and not placement.gpus:
        raise InsufficientResources("the cluster has lost all its GPUs", param="workers")
    return placement


def _available(earlier: Placement | None, nodes: Sequence[Resources]) -> bool:
    if earlier is None:
        return any(node.get("CPU") for node in nodes)
    return fits(earlier, nodes)


def shares(items: Sequence[Item], workers: int) -> list[Sequence[Item]]:
    """Contiguous shares of nearly equal length, one per worker."""
    bounds = [len(items) * worker // workers for worker in range(workers + 1)]
    return [items[start:end] for start, end in pairwise(bounds)]


def assign_owners(groups: Sequence[InputGroup], workers: int) -> list[list[InputGroup]]:
    """Bin-pack the groups by cost: the most expensive first, each to the least loaded worker."""
    loads = [0] * workers
    owned: list[list[InputGroup]] = [[] for _ in range(workers)]
    for group in sorted(groups, key=lambda group: (-group.solve_operations, group.name)):
        owner = loads.index(min(loads))
        owned[owner].append(group)
        loads[owner] += group.solve_operations
    return owned

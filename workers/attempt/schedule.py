"""Keeps Ray actors busy: each has a queue of calls, a few of which are in flight."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

IN_FLIGHT_PER_QUEUE = 2
"""One call runs and one waits, so that an actor never waits for the driver."""


@dataclass(frozen=True)
class Call:
    """One call to an actor, made in its turn; `label` identifies its result."""

    label: Hashable
    submit: Callable[[], Any]  # returns a ray.ObjectRef


def drive(queues: Sequence[Iterable[Call | None]]) -> Iterator[tuple[Any, Any]]:
    """Run the queues in parallel, each in order; yields (label, result) as the calls end.

    A call is taken from its queue when it is submitted, so queues that draw from one iterator share
    its calls: an actor that is faster makes more of them. A queue whose next call depends on the
    result of another yields None until then. A result is fetched and its reference dropped before
    the next call is submitted, so the object store holds only the results in flight. Raises the
    first error of any call.
    """
    waiting = [iter(queue) for queue in queues]
    running: dict[Any, tuple[int, Hashable]] = {}
    in_flight = [0] * len(queues)

    def submit_all() -> None:
        for number, queue in enumerate(waiting):
            while in_flight[number] < IN_FLIGHT_PER_QUEUE:
                call = next(queue, None)
                if call is None:
                    break
                running[call.submit()] = (number, call.label)
                in_flight[number] += 1

    submit_all()
    while running:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        number, label = running.pop(ready)
        in_flight[number] -= 1
        result = ray.get(ready)
        del ready
        yield label, result
        submit_all()

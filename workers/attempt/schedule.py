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


def drive(queues: Sequence[Iterable[Call]]) -> Iterator[tuple[Any, Any]]:
    """Run the queues in parallel, each in order; yields (label, result) as the calls end.

    A call is taken from its queue when it is submitted, so queues that draw from one iterator share
    its calls: an actor that is faster makes more of them. A result is fetched and its reference
    dropped before the next call of its queue is submitted, so the object store holds only the
    results in flight. Raises the first error of any call.
    """
    waiting = [iter(queue) for queue in queues]
    running: dict[Any, tuple[int, Hashable]] = {}

    def submit(number: int) -> None:
        call = next(waiting[number], None)
        if call is not None:
            running[call.submit()] = (number, call.label)

    for number in range(len(waiting)):
        for _ in range(IN_FLIGHT_PER_QUEUE):
            submit(number)
    while running:
        (ready,), _ = ray.wait(list(running), num_returns=1)
        number, label = running.pop(ready)
        result = ray.get(ready)
        del ready
        submit(number)
        yield label, result

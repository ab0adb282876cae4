"""Drives the passes of a calibration on all workers, and solves groups while they go on.

    passes:  worker 0 ── block 7 ── block 6 ── solve ── block 5 ── ...
             worker 1 ── block 7 ── block 6 ── block 5 ── solve ── ...

Once every worker has gone through a block, its statistics are complete. Each of its groups is then
solved by its owner, which takes the other workers' shares, while they take the next block.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from workers.attempt.resume import Resumption
from workers.attempt.schedule import Call, drive
from workers.compression.candidates import LayerCandidates
from workers.compression.shapes import InputGroup
from workers.sweeps.passes import Pass


class Busy:
    """For how long each worker has had calls in flight, since the first call of any."""

    def __init__(self, workers: int) -> None:
        self._in_flight = [0] * workers
        self._since = [0.0] * workers
        self._seconds = [0.0] * workers
        self._started: float | None = None

    def begins(self, number: int) -> None:
        """A call of this worker is submitted."""
        now = time.monotonic()
        self._started = now if self._started is None else self._started
        if self._in_flight[number] == 0:
            self._since[number] = now
        self._in_flight[number] += 1

    def ends(self, number: int) -> None:
        """A call of this worker has ended."""
        self._in_flight[number] -= 1
        if self._in_flight[number] == 0:
            self._seconds[number] += time.monotonic() - self._since[number]

    def idle_shares(self) -> list[float]:
        """By worker, the share of the time so far in which it had nothing to do."""
        passed = 0.0 if self._started is None else time.monotonic() - self._started
        return [1 - seconds / passed if passed else 0.0 for seconds in self._seconds]


class Sweeping:
    """The calibration of one attempt; `owned` has the groups that each worker solves."""

    def __init__(
        self, workers: Sequence[Any], owned: Sequence[Sequence[InputGroup]], resumed: Resumption
    ) -> None:
        self._workers = workers
        self._passes = [deque(each.passes) for each in resumed.calibrated]
        completing: Mapping[str, Pass] = resumed.calibrated[0].completing
        self._waiting: list[dict[Pass, list[str]]] = []  # by owner and the pass that completes them
        for groups in owned:
            waiting: dict[Pass, list[str]] = defaultdict(list)
            for group in groups:
                if group.name not in resumed.solved:
                    waiting[completing[group.name]].append(group.name)
            self._waiting.append(waiting)
        self._ready: list[deque[str]] = [deque() for _ in workers]  # by owner
        self._made: Counter[Pass] = Counter()  # by how many workers
        self._busy = Busy(len(workers))
        self._results = self._run()
        self.passes_left = sum(map(len, self._passes))
        self.solved: dict[str, list[LayerCandidates]] = {}
        """By group: what this attempt has solved so far."""
        self.idle_shares: list[float] = []
        """By worker, once all is solved: the share of the time in which it had nothing to do."""

    def until_all_passed(self) -> Iterator[list[float]]:
        """Make all passes; yields the losses of each one, see `Worker.calibrate`.

        Groups are solved meanwhile. Raises the first error of any call.
        """
        while self.passes_left:
            losses = next(self._results)
            if losses is not None:
                yield losses

    def until_all_solved(self) -> Iterator[None]:
        """Solve what is left; yields after each group."""
        for _ in self._results:
            yield None
        self.idle_shares = self._busy.idle_shares()

    def _run(self) -> Iterator[list[float] | None]:
        """The losses of each pass as it ends, and None for each group."""
        queues = [self._calls(number) for number in range(len(self._workers))]
        for (number, what), result in drive(queues):
            self._busy.ends(number)
            if isinstance(what, Pass):
                self.passes_left -= 1
                self._made[what] += 1
                if self._made[what] == len(self._workers):
                    for waiting, ready in zip(self._waiting, self._ready, strict=True):
                        ready.extend(waiting.pop(what, ()))
                yield result
            else:
                self.solved[what] = result
                yield None

    def _calls(self, number: int) -> Iterator[Call | None]:
        """A worker's calls: groups as soon as they can be solved, else its next pass."""
        worker, passes = self._workers[number], self._passes[number]
        waiting, ready = self._waiting[number], self._ready[number]
        while passes or waiting or ready:
            if ready:
                group = ready.popleft()
                yield self._call(number, group, partial(self._solve, worker, group))
            elif passes:
                each = passes.popleft()
                yield self._call(number, each, partial(worker.calibrate.remote, each))
            else:
                yield None

    def _call(self, number: int, what: Pass | str, submit: Callable[[], Any]) -> Call:
        self._busy.begins(number)
        return Call((number, what), submit)

    def _solve(self, owner: Any, group: str) -> Any:
        return owner.solve.remote(group, *(w.statistics.remote(group) for w in self._workers))

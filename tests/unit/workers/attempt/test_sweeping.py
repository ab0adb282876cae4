"""Groups are solved as soon as every worker has gone through their block."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.fixtures.in_process import Reference, answer_for_ray
from workers.attempt.resume import Resumption
from workers.attempt.sweeping import Busy, Sweeping
from workers.compression.shapes import InputGroup, LinearLayer
from workers.resumption.calibrated import Calibrated
from workers.sweeps.passes import Kind, Pass, Sweeps

BLOCKS = 4
GROUPS = [
    InputGroup((LinearLayer(f"blocks.{block}.{part}", 4, 4, False),))
    for block in range(BLOCKS)
    for part in ("up", "down")
]
SWEEPS = Sweeps(BLOCKS, gradients=True)


class Workers:
    """Stand for Ray actors, whose calls run as they are submitted; records what was called."""

    def __init__(self, count: int) -> None:
        self.calls: list[tuple[int, Any]] = []
        self.each = [self._worker(number) for number in range(count)]

    def _worker(self, number: int) -> Any:
        def call(result: Any) -> Any:
            def remote(what: Any, *_: Any) -> Reference:
                self.calls.append((number, what))
                return Reference(result(what))

            return SimpleNamespace(remote=remote)

        return SimpleNamespace(
            calibrate=call(lambda each: [1.0] if each.kind is Kind.LOSS else []),
            solve=call(lambda group: [group]),
            statistics=SimpleNamespace(remote=lambda group: (number, group)),
        )


def sweeping(workers: Workers, solved: list[str], *, passes: list[Any] | None = None) -> Sweeping:
    """One whose groups are owned in turn."""
    count = len(workers.each)
    completing = {g.name: SWEEPS.completing(int(g.name.split(".")[1])) for g in GROUPS}
    calibrated = [
        Calibrated(SWEEPS.all if passes is None else passes, len(SWEEPS.all), completing)
        for _ in workers.each
    ]
    resumed: Any = Resumption(None, {name: [] for name in solved}, calibrated)  # type: ignore[arg-type]
    return Sweeping(workers.each, [GROUPS[n::count] for n in range(count)], resumed)


@pytest.fixture(autouse=True)
def _answered(monkeypatch: pytest.MonkeyPatch) -> None:
    answer_for_ray(monkeypatch)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_every_pass_is_made_and_every_group_solved_once(count: int) -> None:
    workers = Workers(count)
    each = sweeping(workers, [])
    losses = [loss for found in each.until_all_passed() for loss in found]
    assert losses == [1.0] * count
    list(each.until_all_solved())
    assert each.solved.keys() == {group.name for group in GROUPS}
    for number in range(count):
        made = [what for worker, what in workers.calls if worker == number]
        passes = [what for what in made if isinstance(what, Pass)]
        assert passes == SWEEPS.all
    solved = [what for _, what in workers.calls if isinstance(what, str)]
    assert sorted(solved) == sorted(group.name for group in GROUPS)


def test_a_group_is_solved_while_the_workers_go_on() -> None:
    workers = Workers(2)
    each = sweeping(workers, [])
    list(each.until_all_passed())
    assert len(each.solved) >= 2 * (BLOCKS - 3)  # two passes are under way, and one ends
    for index, (_, what) in enumerate(workers.calls):
        if isinstance(what, str):
            complete = SWEEPS.completing(int(what.split(".")[1]))
            made = [worker for worker, other in workers.calls[:index] if other == complete]
            assert sorted(made) == [0, 1]


def test_what_an_earlier_attempt_has_solved_is_not_solved_again() -> None:
    workers = Workers(2)
    solved = [group.name for group in GROUPS[3:]]
    each = sweeping(workers, solved, passes=SWEEPS.remaining([0, 1], loss_known=True, boundary=2))
    list(each.until_all_passed())
    list(each.until_all_solved())
    assert each.solved.keys() == {group.name for group in GROUPS[:3]}


def test_nothing_to_do_ends_at_once() -> None:
    workers = Workers(2)
    each = sweeping(workers, [group.name for group in GROUPS], passes=[])
    assert list(each.until_all_passed()) == list(each.until_all_solved()) == []
    assert workers.calls == []


def test_idle_is_a_worker_without_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("workers.attempt.sweeping.time.monotonic", lambda: now)
    busy = Busy(2)
    for event, number, now in (  # noqa: B007 - the clock reads it
        (busy.begins, 0, 1.0),
        (busy.begins, 0, 2.0),
        (busy.begins, 1, 3.0),
        (busy.ends, 0, 4.0),
        (busy.ends, 1, 5.0),
        (busy.ends, 0, 9.0),
    ):
        event(number)
    assert busy.idle_shares() == [0.0, 0.75]

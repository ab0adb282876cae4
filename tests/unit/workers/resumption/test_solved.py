"""Solved groups are restored exactly, and a failing bucket does not delay solving."""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch

from tests.unit.workers.compression.test_state import Run
from tests.unit.workers.resumption.test_checkpoints import Memory, of_attempt
from workers.compression.state import SolvedLayer
from workers.resumption import solved
from workers.resumption.solved import SolvedCheckpoints


@pytest.fixture(scope="module")
def run() -> Run:
    return Run()


def test_solutions_come_back_for_the_groups_that_are_wanted(run: Run) -> None:
    bucket = Memory()
    written, solutions = SolvedCheckpoints(of_attempt(bucket, 1), run.groups), {}
    for group in run.groups[:3]:
        solutions[group.name] = run.solved(group, "impact")
        written.write(group.name, solutions[group.name])
    written.finish()
    read = SolvedCheckpoints(of_attempt(bucket, 2), run.groups)
    wanted = [group.name for group in run.groups[1:4]]
    found: dict[str, Sequence[SolvedLayer]] = {}
    refused = read.restore(wanted, found.__setitem__)
    assert (sorted(found), refused) == (sorted(wanted[:2]), [])
    for name in found:
        for solved_layer in found[name]:
            expected = solutions[name][solved_layer.layer.name]
            assert torch.equal(solved_layer.solution.spectrum, expected.solution.spectrum)
            assert solved_layer.options(2).rounded == expected.options(2).rounded


def test_after_a_failure_no_group_waits_for_the_bucket_for_a_while(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, now = Memory(), 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    checkpoints = SolvedCheckpoints(of_attempt(bucket, 1), run.groups)

    def written(number: int) -> bool:
        group = run.groups[number]
        before = len(bucket.objects)
        checkpoints.write(group.name, run.solved(group, "impact"))
        checkpoints.finish()
        return len(bucket.objects) > before

    bucket.room = 0
    assert not written(0)
    assert checkpoints.trouble == "no room"
    bucket.room = 1000
    now = solved.PAUSE_SECONDS - 1
    assert not written(1)
    now = solved.PAUSE_SECONDS
    assert written(2)

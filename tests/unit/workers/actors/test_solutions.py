"""Solved layers come back from files as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.workers.compression.test_state import Run
from workers.actors.solutions import Solutions
from workers.compression.state import solved_tensors


@pytest.mark.parametrize("method", ["impact", "impact-kron", "svd"])
def test_what_exceeds_the_memory_is_in_files(tmp_path: Path, method: str) -> None:
    run = Run()
    solved = [
        solution for group in run.groups[:3] for solution in run.solved(group, method).values()
    ]
    first = sum(tensor.nbytes for tensor in solved_tensors(solved[0]).values())
    kept = Solutions(first, tmp_path / "solved")
    for solution in solved:
        kept.put(solution)
    assert len(list((tmp_path / "solved").iterdir())) == len(solved) - 1
    for solution in solved:
        found = kept[solution.layer.name]
        assert found.layer == solution.layer
        tensors = solved_tensors(found)
        assert tensors.keys() == solved_tensors(solution).keys()
        for name, tensor in solved_tensors(solution).items():
            assert torch.equal(tensors[name], tensor)
    kept.clear()
    assert list((tmp_path / "solved").iterdir()) == []
    with pytest.raises(KeyError):
        kept[solved[0].layer.name]

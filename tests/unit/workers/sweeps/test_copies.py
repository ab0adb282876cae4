"""Hidden states are read only when they have arrived, and the next ones are on their way then.

The copies of a GPU are stood in for by copies on the CPU that are made when somebody waits.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.fixtures.calibration import sweep, swept
from tests.fixtures.models import tiny_llama_config, tiny_model
from workers.compression.statistics import Observation
from workers.sweeps.boundaries import Boundaries
from workers.sweeps.copies import CopiesAtOnce, CopiesBeside, Copy, copies

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Later:
    """A copy of the stand-in; before it is made, the tensor is of NaN."""

    tensor: Tensor
    stream: LateCopies

    def join(self) -> Tensor:
        self.stream.run_until(self)
        return self.tensor


@dataclass
class LateCopies:
    """Makes copies as late as a stream may, and in the order of a stream."""

    queued: deque[tuple[Tensor, Later]] = field(default_factory=deque)
    kept: int = 0
    brought: int = 0
    released: int = 0

    def keep(self, tensor: Tensor, tier: torch.device) -> Copy:
        assert tier == CPU
        self.kept += 1
        return self._copy(tensor.detach())

    def bring(self, kept: Copy, device: torch.device) -> Copy:
        assert device == CPU
        assert isinstance(kept, Later)
        self.brought += 1
        return self._copy(kept.tensor)

    def kept_bytes(self, tensor: Tensor, tier: torch.device) -> int:  # noqa: ARG002
        return 2 * tensor.nbytes

    def release(self) -> None:
        self.released += 1

    def run_until(self, wanted: Later) -> None:
        while any(later is wanted for _, later in self.queued):
            source, later = self.queued.popleft()
            later.tensor.copy_(source)

    def _copy(self, source: Tensor) -> Later:
        later = Later(torch.full_like(source, float("nan")), self)
        self.queued.append((source, later))
        return later


def numbered(number: int) -> Tensor:
    return torch.full((10,), float(number))


@pytest.mark.parametrize("keep_every", [1, 2])
@pytest.mark.parametrize("observations", [frozenset(Observation), frozenset({Observation.MOMENTS})])
def test_late_copies_change_no_bit_of_a_calibration(
    keep_every: int, observations: frozenset[Observation]
) -> None:
    model = tiny_model(tiny_llama_config(num_hidden_layers=4)).double()
    batches = [torch.randint(258, (2, 16)) for _ in range(3)]
    late = LateCopies()
    plain, losses = swept(sweep(model, batches, observations, keep_every=keep_every))
    found, others = swept(sweep(model, batches, observations, keep_every=keep_every, copies=late))
    assert others == losses
    for name, statistics in plain.items():
        assert statistics.inputs is not None or statistics.outputs
        for one, other in zip(_sums(statistics), _sums(found[name]), strict=True):
            assert torch.equal(one, other)
    assert late.brought >= 4 * len(batches)


def _sums(statistics: object) -> list[Tensor]:
    """All tensors in the statistics of a group."""
    if isinstance(statistics, Tensor):
        return [statistics]
    if isinstance(statistics, dict):
        return [tensor for each in statistics.values() for tensor in _sums(each)]
    return _sums(vars(statistics)) if hasattr(statistics, "__dict__") else []


def test_the_next_one_is_on_its_way_while_one_is_used(tmp_path: Path) -> None:
    late = LateCopies()
    store = Boundaries({CPU: 1000}, tmp_path, late)
    for number in range(3):
        store.put(number, numbered(number))
    assert torch.equal(store.get(0, CPU, following=1), numbered(0))
    assert late.brought == 2
    assert len(late.queued) == 1  # the one that is not waited for
    assert torch.equal(store.get(1, CPU, following=2), numbered(1))
    assert torch.equal(store.get(2, CPU, following=3), numbered(2))
    assert late.brought == 3  # each was brought once, and there is no fourth


def test_what_is_replaced_or_dropped_on_its_way_is_not_used(tmp_path: Path) -> None:
    store = Boundaries({CPU: 1000}, tmp_path, LateCopies())
    store.put(0, numbered(0))
    store.put(1, numbered(1))
    store.get(0, CPU, following=1)
    store.put(1, numbered(7))
    assert torch.equal(store.get(1, CPU), numbered(7))
    store.get(0, CPU, following=1)
    store.drop(1)
    with pytest.raises(KeyError):
        store.get(1, CPU)


def test_a_tier_is_charged_what_copies_take_of_it(tmp_path: Path) -> None:
    late = LateCopies()
    store = Boundaries({CPU: 160}, tmp_path / "files", late)
    for number in range(3):  # of 40 bytes, which take 80
        store.put(number, numbered(number))
    assert (late.kept, len(list((tmp_path / "files").iterdir()))) == (2, 1)
    store.drop(0)
    store.put(3, numbered(3))
    assert (late.kept, len(list((tmp_path / "files").iterdir()))) == (3, 1)
    store.clear()
    assert late.released == 1


def test_on_a_cpu_nothing_is_copied() -> None:
    at_once = copies(CPU)
    assert isinstance(at_once, CopiesAtOnce)
    tensor = numbered(1)
    kept = at_once.keep(tensor, CPU)
    assert at_once.bring(kept, CPU).join() is tensor


@pytest.mark.parametrize(("bytes_", "taken"), [(1, 1), (4, 4), (5, 8), (1 << 20, 1 << 20)])
def test_page_locked_memory_is_charged_as_torch_rounds_it(bytes_: int, taken: int) -> None:
    beside = object.__new__(CopiesBeside)  # its stream needs a GPU
    tensor = torch.empty(bytes_, dtype=torch.uint8)
    assert beside.kept_bytes(tensor, CPU) == taken
    assert beside.kept_bytes(tensor, torch.device("cuda")) == bytes_

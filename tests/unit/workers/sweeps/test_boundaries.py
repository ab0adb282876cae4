from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.compression.errors import BoundariesTooLarge
from workers.sweeps.boundaries import Boundaries, held, stride

CPU = torch.device("cpu")


def numbered(number: int) -> torch.Tensor:
    return torch.full((10,), float(number))


def test_what_exceeds_the_memory_is_in_files(tmp_path: Path) -> None:
    store = Boundaries({CPU: 80}, tmp_path / "files")
    for number in range(3):
        store.put(number, numbered(number))
    assert [torch.equal(store.get(n, CPU), numbered(n)) for n in range(3)] == [True] * 3
    assert len(list((tmp_path / "files").iterdir())) == 1
    store.drop(0)
    store.put(3, numbered(3))  # in the memory of the first
    assert len(list((tmp_path / "files").iterdir())) == 1
    store.put(2, numbered(7))
    assert torch.equal(store.get(2, CPU), numbered(7))
    store.drop(2)
    assert list((tmp_path / "files").iterdir()) == []
    assert (2 in store, 3 in store) == (False, True)
    with pytest.raises(KeyError):
        store.get(2, CPU)
    store.put(4, numbered(4))
    store.put(5, numbered(5))
    store.clear()
    assert (3 in store, list((tmp_path / "files").iterdir())) == (False, [])
    store.put(6, numbered(6))  # all room is free again
    store.put(7, numbered(7))
    assert list((tmp_path / "files").iterdir()) == []


def test_a_tier_is_known_by_the_name_that_it_was_given(tmp_path: Path) -> None:
    first = torch.device("cpu:0")  # its tensors say "cpu", as those on "cuda" say "cuda:0"
    store = Boundaries({first: 40}, tmp_path / "files")
    store.put(0, numbered(0))
    store.put(0, numbered(1))
    assert torch.equal(store.get(0, CPU), numbered(1))
    assert not (tmp_path / "files").exists()


def test_all_boundaries_are_kept_where_they_fit() -> None:
    assert stride(32, 10, 10 * held(32, 1)) == 1


def test_where_little_fits_the_kept_ones_are_about_twice_the_root() -> None:
    assert min(held(100, s) for s in range(1, 101)) == 20
    assert stride(100, 10, 200) == 10


def test_too_little_room_is_an_error_that_says_how_much_is_needed() -> None:
    with pytest.raises(BoundariesTooLarge, match="need 200 bytes at least, and there are 199"):
        stride(100, 10, 199)


@given(blocks=st.integers(1, 60), capacity=st.integers(1, 70))
def test_the_least_stride_that_fits_is_chosen(blocks: int, capacity: int) -> None:
    fitting = [s for s in range(1, blocks + 1) if held(blocks, s) <= capacity]
    if fitting:
        assert stride(blocks, 1, capacity) == fitting[0]
    else:
        with pytest.raises(BoundariesTooLarge):
            stride(blocks, 1, capacity)

"""Which passes remain, from any boundary and with any blocks solved."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.sweeps.passes import Kind, Pass, Sweeps

F, B = Kind.FORWARD, Kind.BACKWARD
LOSS = Pass(Kind.LOSS, 3)


def passes(kind: Kind, *blocks: int) -> list[Pass]:
    return [Pass(kind, block) for block in blocks]


def test_with_gradients_it_goes_there_and_back() -> None:
    sweeps = Sweeps(3, gradients=True)
    assert sweeps.all == [*passes(F, 0, 1, 2), LOSS, *passes(B, 2, 1, 0)]
    assert sweeps.completing(1) == Pass(B, 1)
    assert [sweeps.reached(each) for each in (Pass(F, 1), LOSS, Pass(B, 2))] == [None, None, 2]


def test_without_gradients_it_goes_there() -> None:
    sweeps = Sweeps(3, gradients=False)
    assert sweeps.all == [*passes(F, 0, 1, 2), LOSS]
    assert sweeps.completing(1) == Pass(F, 1)
    assert [sweeps.reached(each) for each in (Pass(F, 1), LOSS)] == [2, None]


@pytest.mark.parametrize(
    ("gradients", "unsolved", "loss_known", "boundary", "expected"),
    [
        (True, [], True, None, []),
        (True, [], False, None, [*passes(F, 0, 1, 2), LOSS]),
        (True, [], False, 1, []),  # the checkpoint has the losses
        (True, [0, 1], True, None, [*passes(F, 0, 1, 2), LOSS, *passes(B, 2, 1, 0)]),
        (True, [1], True, None, [*passes(F, 0, 1, 2), LOSS, *passes(B, 2, 1)]),
        (True, [0, 1], False, 2, [*passes(F, 0), *passes(B, 1, 0)]),
        (True, [0], False, 2, [*passes(F, 0), *passes(B, 1, 0)]),
        (True, [0], False, 1, passes(B, 0)),
        (False, [], True, None, []),
        (False, [], False, 2, [*passes(F, 2), LOSS]),
        (False, [1], True, None, passes(F, 0, 1)),
        (False, [1, 2], False, 1, [*passes(F, 1, 2), LOSS]),
    ],
)
def test_what_remains(
    gradients: bool, unsolved: list[int], loss_known: bool, boundary: int | None, expected: object
) -> None:
    sweeps = Sweeps(3, gradients)
    found = sweeps.remaining(unsolved, loss_known=loss_known, boundary=boundary)
    assert found == expected


@given(
    blocks=st.integers(1, 9),
    gradients=st.booleans(),
    loss_known=st.booleans(),
    data=st.data(),
)
def test_every_unsolved_block_is_completed_and_its_input_known(
    blocks: int, gradients: bool, loss_known: bool, data: st.DataObject
) -> None:
    sweeps = Sweeps(blocks, gradients)
    unsolved = data.draw(st.sets(st.integers(0, blocks - 1)))
    boundary = data.draw(st.none() | st.integers(0, blocks))
    if boundary is not None and not sweeps.usable(boundary, unsolved):
        return
    made = sweeps.remaining(unsolved, loss_known=loss_known, boundary=boundary)
    assert {sweeps.completing(block) for block in unsolved} <= set(made)
    hidden = 0 if gradients or boundary is None else boundary
    known, gradient = {hidden}, boundary if gradients else None
    for each in made:
        if each.kind is F:
            assert each.block in known
            known.add(each.block + 1)
        elif each.kind is Kind.LOSS:
            assert blocks in known
            gradient = blocks
        else:
            assert each.block in known
            assert gradient == each.block + 1
            gradient = each.block

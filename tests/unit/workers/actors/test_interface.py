"""The actors' interface passes on every method of the objects behind it."""

from __future__ import annotations

import inspect

import pytest

from workers.actors import assembler, interface, worker


def public_methods(cls: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(cls, callable) if not name.startswith("_")}


@pytest.mark.parametrize(
    ("asked", "acting"),
    [(interface.Worker, worker.Worker), (interface.Assembler, assembler.Assembler)],
)
def test_every_method_is_passed_on(asked: type, acting: type) -> None:
    assert public_methods(asked) == public_methods(acting)

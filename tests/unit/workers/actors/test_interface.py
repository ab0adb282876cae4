"""The actors' interface passes on every method of the objects behind it."""

from __future__ import annotations

import inspect

from workers.actors import assembler, interface, worker


def public_methods(cls: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(cls, callable) if not name.startswith("_")}


def test_every_method_is_passed_on() -> None:
    acting = public_methods(worker.Worker), public_methods(assembler.Assembler)
    assert public_methods(interface.Worker) == acting[0] | acting[1]
    assert not acting[0] & acting[1]

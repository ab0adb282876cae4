"""The actors' interface passes on every method of the objects behind it."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from service.errors import EigenpressError, ModelInvalid, OutOfMemory
from service.inputs.opening import HeldFiles
from workers.actors import assembler, interface, recoverer, worker


def public_methods(cls: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(cls, callable) if not name.startswith("_")}


def test_every_method_is_passed_on() -> None:
    acting = [
        public_methods(each) for each in (worker.Worker, recoverer.Recoverer, assembler.Assembler)
    ]
    passed_on = public_methods(interface.Worker)
    assert passed_on == set.union(*acting)
    assert len(passed_on) == sum(map(len, acting))


class Unpicklable(Exception):
    """An error that cannot be made again from its arguments, as some libraries' cannot."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


PanicException = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})
"""As of libraries in Rust."""


def raising(error: BaseException) -> Any:
    def act() -> None:
        raise error

    return SimpleNamespace(worker=SimpleNamespace(load=act), held=HeldFiles(Path()))


def test_errors_of_libraries_get_a_name_before_they_cross() -> None:
    with pytest.raises(EigenpressError, match="Unexpected Unpicklable: this and that") as caught:
        interface.Worker.load(raising(Unpicklable("this", "that")))
    assert pickle.loads(pickle.dumps(caught.value)).detail == caught.value.detail
    with pytest.raises(EigenpressError, match="Unexpected PanicException: unwrap"):
        interface.Worker.load(raising(PanicException("unwrap")))
    with pytest.raises(OutOfMemory):
        interface.Worker.load(raising(MemoryError()))


@pytest.mark.parametrize("error", [ModelInvalid("no weights"), RayActorError(), SystemExit()])
def test_errors_that_have_a_name_cross_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        interface.Worker.load(raising(error))
    assert caught.value is error

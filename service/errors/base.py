"""What all errors share, and the record of one that ended an attempt."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import ClassVar

from service.printable import printable, shortened

MAX_DETAIL_CHARACTERS = 20_000
"""A longer detail, such as one that repeats an input, is cut."""


@dataclass(frozen=True)
class Failure:
    """The record of an error that ended an attempt."""

    code: str
    detail: str
    param: str | None = None
    retryable: bool = False


class EigenpressError(Exception):
    """Something went wrong inside Eigenpress."""

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str | None = None, *, param: str | None = None) -> None:
        whole = detail or inspect.cleandoc(type(self).__doc__ or "")
        shown = printable(shortened(whole, MAX_DETAIL_CHARACTERS))
        self.detail = shortened(shown, MAX_DETAIL_CHARACTERS)
        self.param = None if param is None else printable(param)
        super().__init__(self.detail)

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the pickling by which Ray carries an error between processes."""
        return _rebuild, (type(self), self.detail, self.param)

    def failure(self) -> Failure:
        return Failure(self.code, self.detail, self.param, self.retryable)


def _rebuild(kind: type[EigenpressError], detail: str, param: str | None) -> EigenpressError:
    return kind(detail, param=param)

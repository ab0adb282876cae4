"""Runs work in a thread until a block ends."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Self


class Background(ABC):
    """A context manager that calls `run` in a thread on entry, and sets `stopped` on exit."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._thread = threading.Thread(target=self.run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._thread.join()

    @abstractmethod
    def run(self) -> None:
        """Work until `stopped` is set."""

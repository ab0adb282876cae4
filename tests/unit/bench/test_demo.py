"""The demo keeps its service running on request."""

from __future__ import annotations

import os
import signal
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bench import demo


class Reader(StringIO):
    """A user who does as the demo says: sends it a signal."""

    def write(self, text: str) -> int:
        if f"kill {os.getpid()}" in text:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().write(text)


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_without_a_terminal_it_waits_for_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    output = Reader()
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        demo.wait_for_leave(Console(file=output, width=200))
    assert "kill" in output.getvalue()
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("typed", ["\n", ""], ids=["Enter", "Ctrl-D"])
def test_at_a_terminal_it_waits_for_enter(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    output = StringIO()
    monkeypatch.setattr(sys, "stdin", Terminal(typed))
    demo.wait_for_leave(Console(file=output))
    assert "press Enter" in output.getvalue()

"""The fixtures of all tests, their distribution over processes, and a progress display."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

pytest_plugins = [
    "tests.fixtures.browser",
    "tests.fixtures.command_line",
    "tests.fixtures.hub",
    "tests.fixtures.inputs",
    "tests.fixtures.jobs",
    "tests.fixtures.models",
    "tests.fixtures.postgres",
    "tests.fixtures.servers",
    "tests.fixtures.spans",
    "tests.fixtures.storage",
    "tests.fixtures.installation",  # which imports others
    "tests.fixtures.in_process",
]

# Most tests are about other things; those of keys require them.
os.environ["EIGENPRESS_REQUIRE_KEYS"] = "false"
os.environ["EIGENPRESS_ALLOWED_HOSTS"] = "testserver,eigenpress.test,127.0.0.1,localhost"

# Every Ray that a test starts asks for this token, and every client in the test's process sends it.
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

SHARING = "tests/integration/ray"
"""The folder whose tests share the session's Ray, which starts slowly, and so one process."""

PROGRESS_SECONDS = 10.0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Start with the longest queue of tests, and end with the shortest ones."""

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(config.rootpath).as_posix()
        return 0 if path.startswith(SHARING) else 2 if path.startswith("tests/unit") else 1

    items.sort(key=rank)


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Gives each file, and all of `SHARING` together, to one process."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return SHARING if file.startswith(SHARING) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling | None:
    """Replace xdist's scheduler for `--dist loadscope`. (Its groups need an older pytest.)"""
    return Scheduling(config, log) if config.getoption("dist") == "loadscope" else None


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("progress") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Progress(config))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--progress",
        action="store_true",
        help=f"Print a line every {PROGRESS_SECONDS:g} seconds instead of a dot for each test.",
    )


class Progress:
    """Prints how many tests have ended, and which one ended last."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._start = self._printed = time.monotonic()
        self._ended = self._failed = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        return ("passed", "", "PASSED") if report.when == "call" and report.passed else None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Iterator[None]:
        self._failed += report.failed
        self._ended += report.when == "teardown"
        now = time.monotonic()
        if now - self._printed >= PROGRESS_SECONDS:
            self._printed = now
            self._print(report.nodeid, now - self._start)
        return (yield)

    def _print(self, last: str, seconds: float) -> None:
        minutes, rest = divmod(int(seconds), 60)
        failed = f", {self._failed} failed" if self._failed else ""
        terminal = self._config.get_terminal_writer()
        terminal.line(f"{minutes:3}:{rest:02}  {self._ended} tests have ended{failed}; last {last}")

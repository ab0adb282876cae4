"""Fixtures that every kind of test shares, where tests run, and how far a run has come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = [
    "tests.fixtures.hub",
    "tests.fixtures.inputs",
    "tests.fixtures.jobs",
    "tests.fixtures.models",
    "tests.fixtures.postgres",
    "tests.fixtures.servers",
    "tests.fixtures.storage",
    "tests.fixtures.installation",  # which imports others
    "tests.fixtures.in_process",
]

TESTS = Path(__file__).parent
PROGRESS_SECONDS = 10.0


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep on one process the tests that share what is expensive to start.

    That is the session's Ray, or what a module's fixture starts for its module.
    """
    for item in items:
        if not isinstance(item, pytest.Function):
            continue
        definitions = [each[-1] for each in item._fixtureinfo.name2fixturedefs.values()]
        if "local_ray" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group("ray"))
        elif any(fixture.scope == "module" for fixture in definitions):
            item.add_marker(pytest.mark.xdist_group(str(item.path.relative_to(TESTS))))


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("progress") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Progress(config))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--progress",
        action="store_true",
        help=f"Print a line every {PROGRESS_SECONDS:g} seconds, in place of a dot for each test.",
    )


class Progress:
    """Says how many tests have ended, and which one ended last."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._start = self._said = time.monotonic()
        self._ended = self._failed = 0

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        return ("passed", "", "PASSED") if report.when == "call" and report.passed else None

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Iterator[None]:
        self._failed += report.failed
        self._ended += report.when == "teardown"
        now = time.monotonic()
        if now - self._said >= PROGRESS_SECONDS:
            self._said = now
            self._say(report.nodeid, now - self._start)
        return (yield)

    def _say(self, last: str, seconds: float) -> None:
        minutes, rest = divmod(int(seconds), 60)
        failed = f", {self._failed} failed" if self._failed else ""
        terminal = self._config.get_terminal_writer()
        terminal.line(f"{minutes:3}:{rest:02}  {self._ended} tests have ended{failed}; last {last}")

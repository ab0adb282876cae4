"""Fixtures that every kind of test shares."""

from __future__ import annotations

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

"""Grafana's own types (grafana-foundation-sdk) know every field of the dashboard and its value."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from typing import Any, get_type_hints

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import units
from pydantic import ConfigDict, TypeAdapter, ValidationError

from tests.fixtures.composition import ROOT

with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # for another format
    from grafana_foundation_sdk.models.dashboard import Dashboard

TEXT = (ROOT / "deploy/monitoring/grafana/dashboards/eigenpress.json").read_text()
UNITS = {value for value in vars(units).values() if isinstance(value, str)}
ANY_CLASS = ConfigDict(arbitrary_types_allowed=True)

register_default_plugins()  # of panels and data sources


def problems(text: str) -> list[str]:
    """The fields that Grafana's types drop or change, and those whose value has another type."""
    given = json.loads(text)
    dashboard = Dashboard.from_json(given)
    read = json.loads(JSONEncoder().encode(dashboard))
    return [*_lost(given, read, ""), *_mistyped(dashboard)]


def _lost(given: Any, read: Any, path: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(read, dict):
        for name, value in given.items():
            yield from _lost(value, read.get(name), f"{path}/{name}")
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for number, (value, other) in enumerate(zip(given, read, strict=True)):
            yield from _lost(value, other, f"{path}/{number}")
    elif given != read:
        yield path


def _mistyped(model: Any) -> Iterator[str]:
    if isinstance(model, list):
        for each in model:
            yield from _mistyped(each)
    elif type(model).__module__.startswith("grafana_foundation_sdk.models"):
        for name, hint in get_type_hints(type(model)).items():
            value = getattr(model, name)
            try:
                TypeAdapter(hint, config=ANY_CLASS).validate_python(value)
            except ValidationError as error:
                yield f"{type(model).__name__}.{name}: {error}"
            yield from _mistyped(value)


def test_grafana_knows_every_field_and_its_value() -> None:
    assert problems(TEXT) == []


def test_every_unit_is_one_of_grafana() -> None:
    panels = json.loads(TEXT)["panels"]
    assert {panel["fieldConfig"]["defaults"]["unit"] for panel in panels} <= UNITS


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"gridPos"', '"gridpos"'),
        ('"expr"', '"expression"'),
        ('"legendFormat"', '"legend"'),
        ('"showLegend"', '"show"'),
        ('"fieldConfig"', '"fields"'),
        ('"displayMode": "list"', '"displayMode": "lines"'),
        ('"mode": "multi"', '"mode": "many"'),
        ('"h": 8', '"h": "tall"'),
        ('"min": 0', '"min": "none"'),
        ('"type": "timeseries"', '"type": 7'),
    ],
)
def test_mistakes_are_noticed(old: str, new: str) -> None:
    assert old in TEXT
    assert problems(TEXT.replace(old, new, 1))

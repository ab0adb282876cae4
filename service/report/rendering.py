"""The templates' environment, and how they write numbers, sizes and times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from service.quantities import duration, size_text
from service.report.pictures import Axis


def environment(*packages: str) -> Environment:
    """The templates of these packages and of reports; every value in them is escaped."""
    made = Environment(
        loader=ChoiceLoader([PackageLoader(each) for each in (*packages, "service.report")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "size": size_text,
        "axis": axis_text,
        "percent": percent,
        "seconds": seconds_text,
        "time": time_text,
    }
    return made


def percent(fraction: float) -> str:
    """
    >>> percent(0.2036)
    '20.4%'
    """
    return f"{fraction:.1%}"


def axis_text(value: float, axis: Axis) -> str:
    """A number along the axis of a chart."""
    return percent(value) if axis.percent else f"{value:,.4g}"


def seconds_text(seconds: float) -> str:
    return duration(timedelta(seconds=seconds))


def time_text(moment: datetime) -> str:
    """A moment in UTC, to the second.

    >>> time_text(datetime(2026, 11, 21, 12, 5, 9, tzinfo=UTC))
    '2026-11-21 12:05:09 UTC'
    """
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"

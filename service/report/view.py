"""What a report says, ready for a template. A report of another version may lack fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class ReportView:
    """A job's report."""

    report: Mapping[str, Any]

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> Self:
        return cls(report)

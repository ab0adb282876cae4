"""Sizes and times as people read them."""

from __future__ import annotations

from datetime import timedelta

UNITS = ("B", "kB", "MB", "GB", "TB")


def size_text(size: float) -> str:
    """Bytes with three digits: ``95.3 MB``."""
    amount, units = float(size), list(UNITS)
    while amount >= 1000 and len(units) > 1:
        amount /= 1000
        units.pop(0)
    return f"{amount:.3g} {units[0]}"


def duration(length: timedelta) -> str:
    """``42 s``, ``3 min 5 s``, ``2 h 10 min``, ``4 days``."""
    seconds = max(0, int(length.total_seconds()))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    if seconds < 2 * 86_400:
        return f"{seconds // 3600} h {seconds % 3600 // 60} min"
    return f"{seconds // 86_400} days"

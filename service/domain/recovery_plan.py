"""How the text of a recovery is divided, and when its course is checked. Pure functions."""

from __future__ import annotations

ASIDE = 12
"""One of so many sequences is kept aside, in whole batches with those that are trained on."""

CHECKS = 12
"""How often the divergence is measured, at most."""

LEAST_STEPS = 4
"""Between two checks."""


def batches_to_train(sequences: int, size: int) -> int:
    """How many batches of this size are trained on; the sequences left are kept aside.

    There must be two batches at least.
    """
    return (sequences - max(size, -(-sequences // ASIDE))) // size


def steps_between_checks(steps: int) -> int:
    """After how many of a recovery's steps the divergence is measured again."""
    return max(LEAST_STEPS, -(-steps // CHECKS))

"""How the text of a recovery is divided, and when its course is checked. Pure functions."""

from __future__ import annotations

ASIDE = 12
"""One of so many sequences is kept aside..."""

MOST_ASIDE = 8
"""... but not more than these and what fills no batch, because each check predicts them all."""

CHECKS = 8
"""How often the divergence is measured, at most."""

TOKENS_PER_INPUT, LEAST_OBSERVED = 5, 8
"""The moments of a layer's inputs are observed on so many tokens for each of its inputs, and on so
many batches at least. They only choose coordinates, and more would take longer than all else that
is done once. Directions that no token has would be chosen by rounding errors."""

LEAST_STEPS = 4
"""Between two checks."""


def batches_to_train(sequences: int, size: int) -> int:
    """How many batches of this size are trained on; the sequences left are kept aside.

    There must be two batches at least.
    """
    aside = min(-(-sequences // ASIDE), MOST_ASIDE)
    return (sequences - max(size, aside)) // size


def batches_to_observe(inputs: int, size: int, length: int) -> int:
    """On how many of the first batches the moments of so many inputs are observed, at most."""
    return max(LEAST_OBSERVED, -(-TOKENS_PER_INPUT * inputs // (size * length)))


def steps_between_checks(steps: int) -> int:
    """After how many of a recovery's steps the divergence is measured again."""
    return max(LEAST_STEPS, -(-steps // CHECKS))

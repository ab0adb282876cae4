"""The errors of the mathematics.

CompressionError
├── UnsupportedLayer     a layer of a kind that cannot be compressed
├── SolveFailed          an eigenproblem without a finite solution
│   └── NotFinite        the model itself computes numbers that are not finite
├── BudgetTooSmall       no choice of ranks meets the budget
└── BoundariesTooLarge   the hidden states between the blocks do not fit
"""

from __future__ import annotations


class CompressionError(Exception):
    """The model cannot be compressed as asked."""


class UnsupportedLayer(CompressionError):
    """The model has a layer of a kind that cannot be compressed."""


class SolveFailed(CompressionError):
    """An eigenproblem has no finite solution."""


class NotFinite(SolveFailed):
    """The model computes numbers that are not finite."""


class BudgetTooSmall(CompressionError):
    """Rank one in every layer already exceeds the budget."""


class BoundariesTooLarge(CompressionError):
    """The hidden states between the blocks fit neither into memory nor into files."""


CPU_ALLOCATOR = "DefaultCPUAllocator"
"""Torch names it in a plain RuntimeError when a machine's memory is exhausted."""


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust panicked, such as tokenizers; its exception is no Exception."""
    return type(error).__module__ == "pyo3_runtime"

"""Symmetric eigenproblems, in float64 or, on a GPU, in float32 with a check in float64.

A GPU takes at least twice as long for float64. So it computes the vectors in float32, and one step
of Newton and Schulz in float64 makes them orthonormal. The values are the vectors' Rayleigh
quotients in float64, whose errors are of the second order: each value is exactly the energy along
its vector, and the sum of all is the trace. Two vectors stay mixed if their values differ by less
than some 10⁻⁸ of the largest one. That costs next to nothing where both are kept or both are
dropped, but a spectrum that mostly lies so deep is not resolved. What fails a check, this one
included, is solved in float64, and the log names the layer.

A stack of matrices would not be faster: torch's `linalg.eigh` solves those larger than 32 one after
the other on a GPU (pytorch/pytorch issue 175585).
"""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from workers.compression.errors import NotFinite, SolveFailed

ORTHOGONALITY = 1e-3
"""The bound of ‖VᵀV − I‖ for vectors in float32; the step in float64 about squares it."""

RESIDUAL = 1e-4
"""The bound of ‖A V − V Λ‖ / ‖A‖, in Frobenius norms, with V and Λ in float64."""

RESOLVED = 1e-5
"""The least median of a spectrum, as a share of its largest value, that float32 resolves."""

log = logging.getLogger("eigenpress.solver")


class _Inaccurate(Exception):
    """A solution in float32 has failed a check; the message says which."""


def solving_dtype(device: torch.device) -> torch.dtype:
    """The precision in which eigenvectors are computed first: a CPU is quick in float64, too."""
    return torch.float32 if device.type == "cuda" else torch.float64


def eigh(name: str, matrix: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The eigenvalues, ascending, and eigenvectors of a matrix in float64, both in float64.

    With a `dtype` of float32 the vectors are computed in it, checked, and refined. Raises
    NotFinite, and SolveFailed if float64 does not converge; both name the layer or group.
    """
    symmetric = finite(name, (matrix + matrix.T) / 2)
    if dtype is torch.float32:
        try:
            return _refined(symmetric, _vectors_in_float32(symmetric))
        except (_Inaccurate, RuntimeError) as error:
            log.warning("%s: solved in float64, because in float32 %s", name, error)
    try:
        values, vectors = torch.linalg.eigh(symmetric)
    except RuntimeError as error:  # torch.linalg.LinAlgError, on every backend
        raise SolveFailed(f"{name}: the eigendecomposition did not converge: {error}") from error
    return values, vectors


def finite(name: str, matrix: Tensor) -> Tensor:
    """The matrix. Raises NotFinite, which names the layer or group."""
    if not torch.isfinite(matrix).all():
        raise NotFinite(f"{name}: its statistics are not finite")
    return matrix


def _vectors_in_float32(matrix: Tensor) -> Tensor:
    """Scaled, because the numbers of a layer without gradients are too small for float32."""
    size = matrix.abs().max()
    scaled = (matrix / torch.where(size > 0, size, 1.0)).float()
    vectors: Tensor = torch.linalg.eigh(scaled).eigenvectors
    return vectors.double()


def _refined(matrix: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal vectors and their Rayleigh quotients, ascending. Raises _Inaccurate."""
    gram = vectors.T @ vectors
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    _check("‖VᵀV − I‖", (gram - identity).norm(), ORTHOGONALITY)
    vectors = torch.addmm(vectors, vectors, gram, beta=1.5, alpha=-0.5)
    products = matrix @ vectors
    values = (vectors * products).sum(0)
    _check("‖A V − V Λ‖", (products - vectors * values).norm(), RESIDUAL * matrix.norm())
    values, order = values.sort()
    if values[len(values) // 2] < RESOLVED * values[-1]:
        raise _Inaccurate(f"half of its spectrum is below {RESOLVED:g} of the largest value")
    return values, vectors[:, order]


def _check(what: str, error: Tensor, bound: Tensor | float) -> None:
    if not error <= bound:  # NaN fails, too
        raise _Inaccurate(f"{what} is {float(error):.1e}, and {float(bound):.1e} at most is right")

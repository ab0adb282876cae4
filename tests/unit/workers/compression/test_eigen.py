"""Eigenvectors in float32 are as good as those in float64, or are not used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.compression import eigen
from workers.compression.eigen import eigh, solving_dtype
from workers.compression.errors import NotFinite, SolveFailed

SIZE = 60
ENERGY = 1e-6
"""The share of a matrix's trace that float32 may leave behind at any rank."""

true_eigh = torch.linalg.eigh


def matrix_with(spectrum: Tensor, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = len(spectrum)
    random = torch.randn(size, size, generator=generator, dtype=torch.float64)
    vectors: Tensor = torch.linalg.qr(random).Q
    return vectors * spectrum @ vectors.T


def decaying(decades: float, size: int = SIZE) -> Tensor:
    return torch.logspace(0, -decades, size, dtype=torch.float64)


def fallbacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "eigenpress.solver"]


def test_a_gpu_begins_in_float32_and_a_cpu_does_not() -> None:
    assert solving_dtype(torch.device("cuda", 0)) is torch.float32
    assert solving_dtype(torch.device("cpu")) is torch.float64


def test_in_float64_nothing_is_added_to_the_library() -> None:
    matrix = matrix_with(decaying(6))
    values, vectors = eigh("layer", matrix, torch.float64)
    expected = true_eigh((matrix + matrix.T) / 2)
    assert torch.equal(values, expected.eigenvalues)
    assert torch.equal(vectors, expected.eigenvectors)


@given(
    size=st.integers(1, 80),
    decades=st.floats(0, 9),
    outlier=st.floats(1, 1e3),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_float32_keeps_as_much_at_every_rank(
    size: int, decades: float, outlier: float, scale: float, seed: int
) -> None:
    spectrum = decaying(decades, size)
    spectrum[0] *= outlier
    matrix = matrix_with(spectrum * scale, seed)
    oracle = torch.linalg.eigvalsh(matrix)
    values, vectors = eigh("layer", matrix, torch.float32)
    identity = torch.eye(size, dtype=torch.float64)
    assert (vectors.T @ vectors - identity).norm() <= eigen.ORTHOGONALITY**2
    assert (matrix @ vectors - vectors * values).norm() <= eigen.RESIDUAL * matrix.norm()
    assert (values.diff() >= 0).all()
    kept = torch.stack(
        [(v := vectors[:, -rank:]).T.mm(matrix @ v).trace() for rank in range(1, size + 1)]
    )
    trace = oracle.sum()
    # What is said to be kept is kept, and it is as much as there is.
    torch.testing.assert_close(values.flip(0).cumsum(0), kept, rtol=1e-9, atol=0.0)
    assert (oracle.flip(0).cumsum(0) - kept <= ENERGY * trace).all()


def test_a_matrix_without_full_rank_needs_no_float64(caplog: pytest.LogCaptureFixture) -> None:
    spectrum = decaying(3)
    spectrum[40:] = 0
    values, _ = eigh("layer", matrix_with(spectrum), torch.float32)
    torch.testing.assert_close(values.flip(0)[:40], spectrum[:40], rtol=1e-9, atol=0.0)
    assert values.abs()[:20].max() < 1e-12
    assert fallbacks(caplog) == []


def test_a_layer_of_zeros_is_solved() -> None:
    values, vectors = eigh("layer", torch.zeros(5, 5, dtype=torch.float64), torch.float32)
    assert torch.equal(values, torch.zeros(5, dtype=torch.float64))
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(5, dtype=torch.float64))


@pytest.mark.parametrize("median", ["deep", "zero"])
def test_a_spectrum_that_lies_too_deep_is_solved_in_float64(
    median: str, caplog: pytest.LogCaptureFixture
) -> None:
    spectrum = decaying(14)
    if median == "zero":
        spectrum[10:] = 0
    matrix = matrix_with(spectrum)
    found = eigh("blocks.0.q_proj", matrix, torch.float32)
    assert torch.equal(found[0], eigh("", matrix, torch.float64)[0])
    assert torch.equal(found[1], eigh("", matrix, torch.float64)[1])
    [message] = fallbacks(caplog)
    assert message.startswith("blocks.0.q_proj: solved in float64, because in float32 half of its")
    assert caplog.records[0].levelno == logging.WARNING


def _another_basis(vectors: Tensor) -> Tensor:
    other: Tensor = torch.linalg.qr(torch.randn_like(vectors)).Q
    return other


def _turned(vectors: Tensor) -> Tensor:
    """Two of the vectors are turned a little into each other."""
    turned = vectors.clone()
    turned[:, 0] = 0.999 * vectors[:, 0] + 0.0447 * vectors[:, -1]
    turned[:, -1] = 0.999 * vectors[:, -1] - 0.0447 * vectors[:, 0]
    return turned


def _one_twice(vectors: Tensor) -> Tensor:
    return torch.cat([vectors[:, :1], vectors[:, :-1]], dim=1)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (_another_basis, "‖A V − V Λ‖"),
        (_turned, "‖A V − V Λ‖"),
        (_one_twice, "‖VᵀV − I‖"),
        (torch.zeros_like, "‖VᵀV − I‖"),
        (lambda vectors: 1.01 * vectors, "‖VᵀV − I‖"),
        (lambda vectors: vectors * float("nan"), "nan"),
    ],
)
def test_wrong_vectors_are_caught_and_solved_in_float64(
    fault: Callable[[Tensor], Tensor],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def faulty(matrix: Tensor) -> Any:
        solved = true_eigh(matrix)
        if matrix.dtype is torch.float64:
            return solved
        return type(solved)((solved.eigenvalues, fault(solved.eigenvectors)))

    monkeypatch.setattr(torch.linalg, "eigh", faulty)
    matrix = matrix_with(decaying(3))
    values, vectors = eigh("layer", matrix, torch.float32)
    expected = true_eigh((matrix + matrix.T) / 2)
    assert torch.equal(values, expected.eigenvalues)
    assert torch.equal(vectors, expected.eigenvectors)
    [message] = fallbacks(caplog)
    assert message.startswith("layer: solved in float64")
    assert reason in message


def test_float32_that_does_not_converge_is_solved_in_float64(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stuck(matrix: Tensor) -> Any:
        if matrix.dtype is torch.float32:
            raise RuntimeError("did not converge")
        return true_eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", stuck)
    values, _ = eigh("layer", matrix_with(decaying(3)), torch.float32)
    torch.testing.assert_close(values.flip(0), decaying(3))
    assert "did not converge" in fallbacks(caplog)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_float64_cannot_solve_is_a_named_error(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(_: Tensor) -> Any:
        raise RuntimeError("did not converge")

    monkeypatch.setattr(torch.linalg, "eigh", stuck)
    with pytest.raises(SolveFailed, match="layer: the eigendecomposition did not converge"):
        eigh("layer", matrix_with(decaying(3)), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_that_are_not_finite_are_named(dtype: torch.dtype) -> None:
    with pytest.raises(NotFinite, match="layer"):
        eigh("layer", torch.full((3, 3), float("nan"), dtype=torch.float64), dtype)

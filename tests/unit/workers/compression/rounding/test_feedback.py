"""The two-sided rounding against a plain implementation, entry by entry, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.compression.candidates import Width
from workers.compression.errors import SolveFailed
from workers.compression.rounding import feedback
from workers.compression.rounding.feedback import Metric, round_with_feedback
from workers.compression.rounding.grid import best_scales, nearest
from workers.compression.rounding.group import price

CPU = torch.device("cpu")
WIDTHS = [Width(2), Width(3), Width(4), Width(8)]
SIZES = st.integers(4, 6).map(lambda groups: groups * 32)
"""In smaller layers chance decides, because the sum has too few errors of single roundings."""


def random_metric(size: int, generator: torch.Generator) -> Tensor:
    """A positive definite matrix whose eigenvalues span four orders of magnitude."""
    basis = torch.randn(size, size, generator=generator, dtype=torch.float64)
    spread = torch.logspace(0, -2, size, dtype=torch.float64)
    rooted = basis * spread
    return rooted @ rooted.T / size + 1e-4 * torch.eye(size, dtype=torch.float64)


def problem(out: int, into: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, into, generator=generator) / into**0.5
    return weight, random_metric(out, generator), random_metric(into, generator)


def rounded_by_entry(
    weight: Tensor, steps: Tensor, width: Width, left: Tensor, right: Tensor
) -> Tensor:
    """The codes: row by row, from the definition of N = Aᵀ E B."""
    rows = left.diagonal().argsort(descending=True, stable=True)
    columns = right.diagonal().argsort(descending=True, stable=True)
    above = unit_upper(left[rows][:, rows])
    beside = unit_upper(right[columns][:, columns])
    wanted, step = (each.double()[rows][:, columns] for each in (weight, steps))
    error, codes = torch.zeros_like(wanted), torch.zeros_like(wanted)
    for i in range(len(rows)):
        for j in range(len(columns)):
            known = above[: i + 1, i] @ error[: i + 1, : j + 1] @ beside[: j + 1, j]
            code = ((wanted[i, j] - known) / step[i, j]).round().clamp(width.lowest, width.highest)
            codes[i, j] = code
            error[i, j] = code * step[i, j] - wanted[i, j]
    return codes[rows.argsort()][:, columns.argsort()]


def unit_upper(metric: Tensor) -> Tensor:
    upper = torch.linalg.cholesky(metric.flip(0, 1)).flip(0, 1)
    return torch.as_tensor(upper / upper.diagonal())


@pytest.mark.parametrize(("out", "into"), [(48, 32), (17, 96), (80, 64), (1, 32)])
def test_equals_rounding_entry_by_entry(
    out: int, into: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "TILE", 16)
    weight, left, right = problem(out, into, 0)
    scales = [best_scales(weight, right.diagonal(), width, torch.bfloat16) for width in WIDTHS]
    found = round_with_feedback(weight, scales, WIDTHS, Metric.of(left), Metric.of(right))
    for rounded, scale, width in zip(found, scales, WIDTHS, strict=True):
        steps = scale.float().repeat_interleave(into // scale.shape[1], 1)
        expected = rounded_by_entry(weight, steps, width, left, right)
        # A tie within float32's precision may fall either way, and then changes what follows.
        assert (rounded.codes != expected).double().mean() < 0.02


@settings(max_examples=20, deadline=None)
@given(out=SIZES, into=SIZES, seed=st.integers(0, 1000), width=st.sampled_from(WIDTHS[1:]))
def test_more_feedback_is_never_worse(out: int, into: int, seed: int, width: Width) -> None:
    weight, left, right = problem(out, into, seed)
    scales = best_scales(weight, Metric.of(right).importance, width, torch.bfloat16)

    def cost(outputs: Metric, inputs: Metric) -> float:
        (found,) = round_with_feedback(weight, [scales], [width], outputs, inputs)
        return price(found.dequantized() - weight, left, right)

    two_sided = cost(Metric.of(left), Metric.of(right))
    one_sided = cost(Metric.identity(out, CPU), Metric.of(right))
    to_nearest = cost(Metric.identity(out, CPU), Metric.identity(into, CPU))
    assert two_sided <= one_sided <= to_nearest


def test_without_metrics_it_rounds_to_nearest() -> None:
    weight, _, right = problem(70, 96, 3)
    scales = [best_scales(weight, right.diagonal(), width, torch.float16) for width in WIDTHS]
    neither = Metric.identity(70, CPU), Metric.identity(96, CPU)
    found = round_with_feedback(weight, scales, WIDTHS, *neither)
    for rounded, scale, width in zip(found, scales, WIDTHS, strict=True):
        assert torch.equal(rounded.codes, nearest(weight, scale, width).codes)


def test_widths_do_not_depend_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, left, right = problem(96, 64, 4)
    scales = [best_scales(weight, right.diagonal(), width, torch.bfloat16) for width in WIDTHS]
    metrics = Metric.of(left), Metric.of(right)
    together = round_with_feedback(weight, scales, WIDTHS, *metrics)
    monkeypatch.setattr(feedback, "MOST_BYTES", 1)
    alone = round_with_feedback(weight, scales, WIDTHS, *metrics)
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.codes, other.codes)


def test_a_metric_is_its_factors() -> None:
    matrix = random_metric(48, torch.Generator().manual_seed(6))
    metric = Metric.of(matrix)
    assert torch.equal(metric.factor.triu(), metric.factor)
    assert torch.equal(metric.factor.diagonal(), torch.ones(48))
    diagonal = matrix.diagonal()
    pivots = (metric.importance.square() / diagonal)[metric.order]
    product = metric.factor * pivots @ metric.factor.T.double()
    torch.testing.assert_close(product, matrix[metric.order][:, metric.order], rtol=1e-4, atol=1e-6)


def test_refuses_a_metric_that_is_not_positive() -> None:
    _, left, _ = problem(32, 32, 5)
    with pytest.raises(SolveFailed, match="positive definite"):
        Metric.of(-left)

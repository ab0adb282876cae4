"""The solver agrees with independent float64 oracles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.compression.allocation import global_allocation
from workers.compression.candidates import total_error
from workers.compression.errors import SolveFailed
from workers.compression.metrics import METHODS, SHRINKAGE, RightMetric, importance
from workers.compression.shapes import InputGroup, LinearLayer
from workers.compression.solve import Factors, Solution, break_even_rank, solve_group
from workers.compression.statistics import GroupStatistics, Moments

TOKENS, LENGTH = 200, 20


@dataclass(frozen=True)
class Problem:
    """A random layer with its calibration inputs and output gradients, all float64."""

    group: InputGroup
    weight: Tensor  # (out, in)
    bias: Tensor | None  # (out,)
    inputs: Tensor  # (tokens, in)
    gradients: Tensor  # (tokens, out)

    @property
    def layer(self) -> LinearLayer:
        return self.group.layers[0]

    @property
    def outputs(self) -> Tensor:
        """(tokens, out)"""
        outputs = self.inputs @ self.weight.T
        return outputs if self.bias is None else outputs + self.bias

    def sequences(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Gradients and inputs of the tokens of each sequence."""
        yield from zip(
            self.gradients.reshape(-1, LENGTH, len(self.weight)),
            self.inputs.reshape(-1, LENGTH, self.weight.shape[1]),
            strict=True,
        )

    @property
    def scale(self) -> Tensor:
        """√m, (out,)"""
        return self.gradients.square().mean(0).sqrt()

    def statistics(self, *, keep_outputs: bool) -> GroupStatistics:
        """Everything that any method may ask for."""
        name, weight = self.layer.name, self.weight
        sided = self.gradients if self.layer.output_is_smaller else self.gradients @ weight
        fisher = sum((g.T @ x).square().sum(1) for g, x in self.sequences())
        assert isinstance(fisher, Tensor)
        return GroupStatistics(
            inputs=None if keep_outputs else moments_of(self.inputs),
            outputs={name: moments_of(self.inputs @ weight.T)} if keep_outputs else {},
            magnitudes=self.inputs.abs().sum(0),
            gradient_squares={name: self.gradients.square().sum(0)},
            gradient_moments={name: sided.T @ sided},
            row_fisher={name: fisher},
            rows=TOKENS,
            tokens=TOKENS,
        )

    def solve(
        self,
        method: str = "impact",
        *,
        keep_outputs: bool = False,
        full: bool = True,
        dtype: torch.dtype = torch.float64,
    ) -> Solution:
        return solve_group(
            self.group,
            {self.layer.name: self.weight},
            self.statistics(keep_outputs=keep_outputs),
            METHODS[method],
            dtype=dtype,
            max_rank=min(self.weight.shape) if full else None,
        )[self.layer.name]

    def truncate(self, solution: Solution, rank: int) -> Factors:
        return solution.truncate(rank, self.weight, self.bias)

    def metrics(self, method: str) -> tuple[Tensor, Tensor]:
        """L (out, out) and R (in, in) as the authors define them, from all tokens at once."""
        out, inner = self.weight.shape
        eye = torch.eye(out, dtype=torch.float64), torch.eye(inner, dtype=torch.float64)
        second = self.inputs.T @ self.inputs / TOKENS
        covariance = torch.cov(self.inputs.T, correction=0)
        if method == "svd":
            return eye
        if method == "fwsvd":
            fisher = torch.stack([(g.T @ x).square() for g, x in self.sequences()]).sum(0)
            return (fisher.sum(1) / TOKENS).sqrt().diag(), eye[1]
        if method == "asvd":
            return eye[0], self.inputs.abs().mean(0).sqrt().diag()
        if method == "svd-llm":
            return eye[0], torch.linalg.cholesky(second)
        if method == "afm":
            return eye[0], torch.linalg.cholesky(covariance)
        if method == "impact":
            return self.scale.diag(), torch.linalg.cholesky(covariance)
        gradients = self.gradients.T @ self.gradients / TOKENS
        shrunk = (1 - SHRINKAGE) * gradients + SHRINKAGE * gradients.diagonal().diag()
        return torch.linalg.cholesky(shrunk).T, torch.linalg.cholesky(covariance)

    def weighted_error(self, approximation: Tensor, scale: Tensor) -> float:
        """Mean over tokens of ‖D (ŷ − y)‖² on the calibration set."""
        return float(((approximation - self.outputs) * scale).square().sum(1).mean())


def problem(out: int, inner: int, *, bias: bool = False, seed: int = 0) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    layer = LinearLayer("layer", out, inner, bias)
    mixing = random(inner, inner) * torch.logspace(0, -2, inner, dtype=torch.float64)
    return Problem(
        InputGroup((layer,)),
        random(out, inner),
        random(out) if bias else None,
        random(TOKENS, inner) @ mixing + random(inner),
        random(TOKENS, out) * torch.logspace(0, -1.5, out, dtype=torch.float64),
    )


def moments_of(rows: Tensor) -> Moments:
    moments = Moments.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    moments.update(rows)
    return moments


def apply(factors: Factors, inputs: Tensor) -> Tensor:
    outputs = inputs @ factors.down.T @ factors.up.T
    return outputs if factors.bias is None else outputs + factors.bias


shapes = pytest.mark.parametrize(("out", "inner"), [(12, 12), (20, 9), (9, 20)])
biases = pytest.mark.parametrize("bias", [False, True])


@shapes
def test_the_spectrum_is_that_of_the_covariance_of_the_weighted_outputs(
    out: int, inner: int
) -> None:
    case = problem(out, inner)
    covariance = torch.cov((case.outputs * case.scale).T, correction=0)
    oracle = torch.linalg.eigvalsh(covariance).flip(0)[: min(out, inner)]
    torch.testing.assert_close(
        case.solve().spectrum, oracle, rtol=1e-9, atol=1e-13 * float(oracle[0])
    )


@biases
@shapes
@pytest.mark.parametrize("method", ["impact", "afm"])
def test_the_error_on_the_calibration_set_is_what_was_dropped(
    out: int, inner: int, bias: bool, method: str
) -> None:
    case = problem(out, inner, bias=bias)
    solution = case.solve(method)
    scale = case.scale if method == "impact" else torch.ones(out, dtype=torch.float64)
    for rank in range(1, min(out, inner)):
        error = case.weighted_error(apply(case.truncate(solution, rank), case.inputs), scale)
        assert error == pytest.approx(float(solution.spectrum[rank:].sum()), rel=1e-9)


@shapes
@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_is_the_svd_of_its_definition(out: int, inner: int, method: str) -> None:
    """Ŵ = L⁻¹ (U_r Σ_r V_rᵀ) R⁻¹, with L and R written out; svd-llm is its authors' whitening."""
    case, rank = problem(out, inner), 4
    left, right = case.metrics(method)
    u, singular, v = torch.linalg.svd(left @ case.weight @ right, full_matrices=False)
    truncated = u[:, :rank] * singular[:rank] @ v[:rank]
    oracle = torch.linalg.solve(left, truncated) @ torch.linalg.inv(right)
    solution = case.solve(method)
    factors = case.truncate(solution, rank)
    torch.testing.assert_close(
        solution.spectrum, singular.square(), rtol=1e-8, atol=1e-12 * float(singular[0] ** 2)
    )
    torch.testing.assert_close(factors.up @ factors.down, oracle, rtol=1e-6, atol=1e-8)
    assert (factors.bias is not None) == (METHODS[method].right is RightMetric.CENTRED)


@shapes
def test_svd_llm_equals_its_authors_whitening_in_numpy(out: int, inner: int) -> None:
    """SVD-LLM, arXiv 2403.07378, algorithm 1: X Xᵀ = S Sᵀ, W S = U Σ Vᵀ, W' = U_r Σ_r V_rᵀ S⁻¹."""
    case = problem(out, inner)
    weight, inputs = case.weight.numpy(), case.inputs.numpy()
    whitening = np.linalg.cholesky(inputs.T @ inputs)
    u, singular, v = np.linalg.svd(weight @ whitening, full_matrices=False)
    solution = case.solve("svd-llm")
    np.testing.assert_allclose(solution.spectrum.numpy() * TOKENS, singular**2, rtol=1e-6)
    for rank in (1, 4, min(out, inner)):
        compressed = u[:, :rank] * singular[:rank] @ v[:rank] @ np.linalg.inv(whitening)
        factors = case.truncate(solution, rank)
        assert factors.bias is None
        np.testing.assert_allclose(
            (factors.up @ factors.down).numpy(), compressed, rtol=1e-6, atol=1e-6
        )


@biases
@shapes
def test_the_formulas_of_the_design_written_out(out: int, inner: int, bias: bool) -> None:
    case, rank = problem(out, inner, bias=bias), 4
    covariance = torch.cov(case.outputs.T, correction=0)
    m = case.gradients.square().mean(0)
    weighted = covariance * torch.sqrt(torch.outer(m, m))  # C = Cov(y) ⊙ M
    _, vectors = torch.linalg.eigh(weighted)
    top = vectors[:, -rank:]
    projection = torch.diag(m.sqrt().reciprocal()) @ top @ top.T @ torch.diag(m.sqrt())
    mean = case.outputs.mean(0)
    oracle = mean + (case.outputs - mean) @ projection.T
    found = apply(case.truncate(case.solve(), rank), case.inputs)
    torch.testing.assert_close(found, oracle, rtol=1e-8, atol=1e-9)


@shapes
def test_no_random_linear_map_of_the_same_rank_does_better(out: int, inner: int) -> None:
    case, rank = problem(out, inner), 3
    solution = case.solve()
    best = case.weighted_error(apply(case.truncate(solution, rank), case.inputs), case.scale)
    generator = torch.Generator().manual_seed(1)
    factors = case.truncate(solution, rank)
    for trial in range(200):
        size = 10.0 ** -(trial % 6)  # from anywhere to very near the optimum

        def near(tensor: Tensor, size: float = size) -> Tensor:
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            return tensor + size * noise

        down, up = near(factors.down), near(factors.up)
        response = case.inputs @ down.T @ up.T
        rival = response + (case.outputs - response).mean(0)  # with the bias that suits it best
        assert case.weighted_error(rival, case.scale) >= best


def test_with_equal_importance_impact_is_principal_component_analysis() -> None:
    case = problem(10, 14)
    equal = Problem(case.group, case.weight, None, case.inputs, torch.ones(TOKENS, 10).double())
    centred = case.outputs - case.outputs.mean(0)
    _, singular, right = torch.linalg.svd(centred, full_matrices=False)
    pca = case.outputs.mean(0) + centred @ right[:4].T @ right[:4]
    for method in ("impact", "afm"):
        solution = equal.solve(method)
        torch.testing.assert_close(solution.spectrum, singular.square() / TOKENS)
        torch.testing.assert_close(apply(equal.truncate(solution, 4), case.inputs), pca)


@biases
@shapes
@pytest.mark.parametrize("method", sorted(METHODS))
def test_full_rank_reproduces_the_layer(out: int, inner: int, bias: bool, method: str) -> None:
    case = problem(out, inner, bias=bias)
    factors = case.truncate(case.solve(method), min(out, inner))
    unseen = torch.randn(50, inner, dtype=torch.float64)
    expected = unseen @ case.weight.T + (0 if case.bias is None else case.bias)
    torch.testing.assert_close(apply(factors, unseen), expected, rtol=1e-7, atol=1e-7)


@biases
@pytest.mark.parametrize(("out", "inner"), [(12, 12), (9, 20)])
def test_input_and_output_moments_give_the_same_layer(out: int, inner: int, bias: bool) -> None:
    case, rank = problem(out, inner, bias=bias), 4
    by_input, by_output = case.solve(), case.solve(keep_outputs=True)
    torch.testing.assert_close(by_input.spectrum, by_output.spectrum, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(
        apply(case.truncate(by_input, rank), case.inputs),
        apply(case.truncate(by_output, rank), case.inputs),
        rtol=1e-7,
        atol=1e-8,
    )


def test_the_root_of_a_shared_input_serves_layers_of_every_shape() -> None:
    """Wide layers go by the in × in problem, narrow ones by the out × out one."""
    wide, narrow = problem(30, 10, seed=1), problem(6, 10, seed=2)
    layers = (LinearLayer("wide", 30, 10, False), LinearLayer("narrow", 6, 10, False))
    statistics = GroupStatistics(
        inputs=moments_of(wide.inputs),
        gradient_squares={
            "wide": wide.gradients.square().sum(0),
            "narrow": narrow.gradients.square().sum(0),
        },
        rows=TOKENS,
        tokens=TOKENS,
    )
    weights = {"wide": wide.weight, "narrow": narrow.weight}
    solved = solve_group(InputGroup(layers), weights, statistics, METHODS["impact"])
    for name, scale in (("wide", wide.scale), ("narrow", narrow.scale)):
        outputs = wide.inputs @ weights[name].T * scale
        spectrum = torch.linalg.eigvalsh(torch.cov(outputs.T, correction=0)).flip(0)
        torch.testing.assert_close(
            solved[name].spectrum, spectrum[: min(weights[name].shape)], rtol=1e-9, atol=1e-12
        )


def test_an_input_that_never_varies_in_some_direction_is_no_obstacle() -> None:
    case = problem(20, 9)
    flat = case.inputs.clone()
    flat[:, 4] = 1.0
    flat[:, 5] = flat[:, 6]
    degenerate = Problem(case.group, case.weight, None, flat, case.gradients)
    solution = degenerate.solve()
    error = degenerate.weighted_error(apply(degenerate.truncate(solution, 7), flat), case.scale)
    assert error == pytest.approx(0, abs=1e-9)


def test_an_output_without_gradient_keeps_the_factors_finite() -> None:
    case = problem(12, 12)
    silent = case.gradients.clone()
    silent[:, 3] = 0
    quiet = Problem(case.group, case.weight, None, case.inputs, silent)
    factors = quiet.truncate(quiet.solve(), 12)
    torch.testing.assert_close(apply(factors, case.inputs), case.outputs, rtol=1e-6, atol=1e-6)


def test_a_layer_that_no_gradient_reached_counts_its_outputs_alike_and_next_to_nothing() -> None:
    case = problem(12, 12)
    statistics = case.statistics(keep_outputs=False)
    statistics.gradient_squares["layer"].zero_()
    [value] = set(importance(statistics, case.layer).tolist())
    assert 0 < value < 1e-12


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["inputs", "gradients"])
def test_numbers_that_are_not_finite_are_refused_by_name(value: float, where: str) -> None:
    case = problem(12, 12)
    getattr(case, where)[7, 3] = value
    with pytest.raises(SolveFailed, match=r"layer: .* not finite"):
        case.solve()


def test_rounding_where_outputs_vary_and_gradients_vanish_is_no_failure() -> None:
    case = problem(12, 12)
    statistics = case.statistics(keep_outputs=True)
    statistics.gradient_squares["layer"][0] = 0
    scatter = statistics.outputs["layer"].scatter
    scatter[0, :] = scatter[:, 0] = 0
    scatter[1, :] = scatter[:, 1] = 0
    largest = scatter.norm()
    scatter[0, 0], scatter[1, 1] = 1e7 * largest, -1e-3 * largest
    solutions = solve_group(case.group, {"layer": case.weight}, statistics, METHODS["impact"])
    assert solutions["layer"].spectrum.min() == 0


def test_a_covariance_that_cannot_be_one_is_refused() -> None:
    case = problem(12, 12)
    statistics = case.statistics(keep_outputs=True)
    statistics.outputs["layer"].scatter.neg_()
    with pytest.raises(SolveFailed, match="has the eigenvalue"):
        solve_group(case.group, {"layer": case.weight}, statistics, METHODS["impact"])


@given(
    out=st.integers(2, 24),
    inner=st.integers(2, 24),
    bias=st.booleans(),
    method=st.sampled_from(sorted(METHODS)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_more_rank_never_hurts(out: int, inner: int, bias: bool, method: str, seed: int) -> None:
    case = problem(out, inner, bias=bias, seed=seed)
    left, right = case.metrics(method)
    solution = case.solve(method)
    errors = [
        float((left @ (case.weight - f.up @ f.down) @ right).square().sum())
        for f in (case.truncate(solution, rank) for rank in range(1, min(out, inner) + 1))
    ]
    slack = 1e-9 * errors[0]
    assert all(later <= earlier + slack for earlier, later in pairwise(errors))


@given(out=st.integers(1, 64), inner=st.integers(1, 64), own=st.booleans(), carried=st.booleans())
def test_the_break_even_rank_is_the_last_that_saves_parameters(
    out: int, inner: int, own: bool, carried: bool
) -> None:
    layer = LinearLayer("layer", out, inner, own)

    def cost(rank: int) -> int:
        return rank * (out + inner - rank) + (1 + carried) * out

    rank = break_even_rank(layer, carried)
    assert 1 <= rank <= min(out, inner)
    assert rank == 1 or cost(rank) < layer.parameters
    assert rank == min(out, inner) or cost(rank + 1) >= layer.parameters


@shapes
@pytest.mark.parametrize("method", sorted(METHODS))
def test_vectors_in_float32_give_layers_as_good(out: int, inner: int, method: str) -> None:
    case = problem(out, inner)
    left, right = case.metrics(method)
    exact = case.solve(method).spectrum
    solution = case.solve(method, dtype=torch.float32)
    least = 1e-9 * float(exact.sum())
    for rank in range(1, min(out, inner) + 1):
        factors = case.truncate(solution, rank)
        error = float((left @ (case.weight - factors.up @ factors.down) @ right).square().sum())
        claimed = float(solution.spectrum[rank:].sum())
        assert error == pytest.approx(claimed, rel=1e-3, abs=least)
        assert error <= 1.001 * float(exact[rank:].sum()) + least


@pytest.mark.parametrize("decades", [2.0, 4.0, 5.5])
@pytest.mark.parametrize("keep", [0.5, 0.8, 0.9])
def test_vectors_in_float32_move_no_rank_that_matters(decades: float, keep: float) -> None:
    """Layers whose inputs span few decades and many, as those of real models do."""
    cases = [problem(36, inner, seed=seed) for seed, inner in enumerate((20, 36, 36, 50, 80))]
    cases = [
        replace(case, inputs=case.inputs * torch.logspace(2, 2 - decades / 2, inner).double())
        for case in cases
        for inner in [case.weight.shape[1]]
    ]
    options = {
        dtype: [
            replace(case.solve("impact", full=False, dtype=dtype).options(), name=str(number))
            for number, case in enumerate(cases)
        ]
        for dtype in (torch.float64, torch.float32)
    }
    budget = int(keep * sum(layer.dense_cost for layer in options[torch.float64]))
    ranks = {dtype: global_allocation(layers)(budget) for dtype, layers in options.items()}
    best = total_error(options[torch.float64], ranks[torch.float64])
    energy = math.fsum(float(layer.spectrum.sum()) for layer in options[torch.float64])
    # What the float32 spectra say of their own ranks is the error of their own layers.
    error = total_error(options[torch.float32], ranks[torch.float32])
    assert error <= 1.001 * best + 1e-6 * energy
    moved = [
        abs((one or 0) - (other or 0))
        for one, other in zip(*(each.values() for each in ranks.values()), strict=True)
    ]
    assert sum(moved) <= 2


def test_only_ranks_that_save_parameters_are_kept() -> None:
    case = problem(12, 12)
    solution = case.solve(full=False)
    assert solution.max_rank == break_even_rank(solution.layer, True) == 7
    for rank in (0, 8):
        with pytest.raises(ValueError, match=r"not in 1\.\.7"):
            case.truncate(solution, rank)


def test_halves_are_solved_in_float64_and_answered_in_float32() -> None:
    case = problem(12, 12, bias=True)
    assert case.bias is not None
    half = Problem(
        case.group, case.weight.bfloat16(), case.bias.bfloat16(), case.inputs, case.gradients
    )
    solution = solve_group(
        half.group,
        {"layer": half.weight},
        case.statistics(keep_outputs=False),
        METHODS["impact"],
    )["layer"]
    factors = half.truncate(solution, 2)
    assert factors.down.dtype == factors.up.dtype == torch.float32
    assert factors.bias is not None
    assert factors.bias.dtype == torch.float32
    assert solution.spectrum.dtype == torch.float64


def test_factors_own_no_more_memory_than_they_show() -> None:
    """A view of all ranks would send all of them to whoever asks for a few."""
    case = problem(12, 12, bias=True)
    factors = case.truncate(case.solve(), 2)
    for tensor in (factors.down, factors.up, factors.bias):
        assert tensor is not None
        assert tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_layer_that_no_token_reached_can_only_stay_dense(method: str) -> None:
    case = problem(12, 9)
    statistics = GroupStatistics.zeros(
        case.group,
        METHODS[method].observations,
        dtype=torch.float64,
        device=case.weight.device,
    )
    statistics.tokens = TOKENS
    solution = solve_group(case.group, {"layer": case.weight}, statistics, METHODS[method])["layer"]
    assert solution.options().max_rank == 0


@pytest.mark.parametrize("method", ["impact", "impact-kron", "svd", "afm"])
def test_outputs_have_their_share_of_the_importance(method: str) -> None:
    case = problem(12, 20)
    found = case.solve(method).options().importance
    if method in ("svd", "afm"):
        assert found is None
        return
    assert found is not None
    expected = case.gradients.square().mean(0).sort(descending=True).values
    torch.testing.assert_close(found / found.sum(), expected / expected.sum())


def test_svd_needs_no_calibration() -> None:
    case = problem(12, 9)
    solution = solve_group(case.group, {"layer": case.weight}, GroupStatistics(), METHODS["svd"])[
        "layer"
    ]
    assert torch.equal(solution.spectrum, case.solve("svd").spectrum)


def test_factors_that_are_not_finite_are_refused() -> None:
    case = problem(12, 9)
    solution = case.solve()
    solution.directions[0, 0] = float("nan")
    with pytest.raises(SolveFailed, match="layer: its factors of rank 2 are not finite"):
        case.truncate(solution, 2)

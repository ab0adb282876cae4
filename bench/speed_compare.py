"""Compares the product with a plain script, alternately, so that noise affects both equally."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench import speed_plain
from bench.material import calibrated, groups_of
from bench.measuring import added_to
from bench.speed_plain import PlainStatistics
from workers.compression.metrics import METHODS, importance
from workers.compression.shapes import InputGroup
from workers.compression.solve import Solution, solve_group
from workers.compression.statistics import GroupStatistics, Moments, accumulation_dtype

METHOD = METHODS["impact"]
TOLERANCE = 1e-6
"""The largest allowed difference of two spectra, relative to the largest eigenvalue."""


class SpectraDiffer(Exception):
    """The two implementations gave different results, so their times are not comparable."""


@dataclass(frozen=True)
class Comparison:
    """The seconds of every repetition, ours and the plain script's."""

    ours: list[float]
    plain: list[float]

    @property
    def speedup(self) -> float:
        """The plain script's median time over ours."""
        return median(self.plain) / median(self.ours)


def compare_calibration(model: Any, batches: Sequence[Tensor], repetitions: int) -> Comparison:
    """Calibrate on all batches with both implementations, alternating with every repetition.

    The product takes all batches through a block before it turns to the next block, so the two
    cannot alternate with every batch.
    """
    groups = groups_of(model)
    device = batches[0].device
    dtype = accumulation_dtype(device)

    def run_ours(text: Sequence[Tensor]) -> None:
        calibrated(model, groups, text, METHOD.observations)

    def run_plain(text: Sequence[Tensor]) -> None:
        plain = {
            layer.name: PlainStatistics.zeros(layer, dtype, device)
            for group in groups
            for layer in group.layers
        }
        for batch in text:
            speed_plain.calibrate(model, plain, batch)

    return Comparison(*_in_turns(run_ours, run_plain, [batches] * repetitions, device))


def compare_solve(model: Any, batches: Sequence[Tensor], repetitions: int) -> Comparison:
    """Solve the same statistics with both implementations, alternating with every group.

    Raises SpectraDiffer unless both find the same spectra.
    """
    groups = groups_of(model)
    device = batches[0].device
    observed = observe_inputs(model, groups, batches)

    def repetition() -> tuple[float, float]:
        spectra: dict[str, Tensor] = {}
        plain_spectra: dict[str, Tensor] = {}

        def run_ours(problem: _Problem) -> None:
            solutions = problem.solve()
            spectra.update({name: solution.spectrum for name, solution in solutions.items()})

        def run_plain(problem: _Problem) -> None:
            plain_spectra.update(problem.solve_plainly())

        problems = (_Problem.of(model, group, observed[group.name]) for group in groups)
        ours, plain = _in_turns(run_ours, run_plain, problems, device)
        _check_equal(spectra, plain_spectra)
        return sum(ours), sum(plain)

    pairs = [repetition() for _ in range(repetitions)]
    return Comparison([ours for ours, _ in pairs], [plain for _, plain in pairs])


@dataclass(frozen=True)
class _Problem:
    """One group of layers, with the same statistics in the form of each implementation."""

    group: InputGroup
    weights: dict[str, Tensor]
    statistics: GroupStatistics
    covariance: Tensor  # (in, in) float64: the plain script's
    importances: list[Tensor]  # per layer, (out,) float64

    @classmethod
    def of(cls, model: Any, group: InputGroup, statistics: GroupStatistics) -> _Problem:
        modules = {layer.name: model.get_submodule(layer.name) for layer in group.layers}
        inputs = statistics.inputs
        if inputs is None:
            raise ValueError("the group's input was not observed")
        weights = {name: module.weight.detach() for name, module in modules.items()}
        if group.keeps_outputs:
            outputs = {name: _response(inputs, weight) for name, weight in weights.items()}
            ours = replace(statistics, inputs=None, outputs=outputs)
        else:
            ours = statistics
        return cls(
            group,
            weights,
            ours,
            inputs.covariance(),
            [importance(statistics, layer) for layer in group.layers],
        )

    def solve(self) -> dict[str, Solution]:
        return solve_group(self.group, self.weights, self.statistics, METHOD)

    def solve_plainly(self) -> dict[str, Tensor]:
        solved = speed_plain.solve(list(self.weights.values()), self.importances, self.covariance)
        return {name: spectrum for name, (_, spectrum, _) in zip(self.weights, solved, strict=True)}


class _InputKept(InputGroup):
    """A group that keeps its input's moments even if those of the outputs are smaller."""

    @property
    def keeps_outputs(self) -> bool:
        return False


def observe_inputs(
    model: Any, groups: Sequence[InputGroup], batches: Sequence[Tensor]
) -> dict[str, GroupStatistics]:
    """IMPACT's statistics with every group's input moments, (in, in), for both implementations."""
    kept = [_InputKept(group.layers) for group in groups]
    return calibrated(model, kept, batches, METHOD.observations)


def _response(inputs: Moments, weight: Tensor) -> Moments:
    """The moments of W x, computed from those of x in float64."""
    dense = weight.double()
    return Moments(
        inputs.count,
        (dense @ inputs.average.double()),
        (dense @ inputs.scatter.double() @ dense.T),
    )


def _check_equal(ours: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    for name, spectrum in plain.items():
        difference = float((ours[name] - spectrum).abs().max() / spectrum[0])
        if not difference <= TOLERANCE:
            raise SpectraDiffer(f"{name}: the spectra differ by {difference:.1e} of the largest")


def _in_turns(
    ours: Callable[[Any], None],
    plain: Callable[[Any], None],
    pieces: Iterable[Any],
    device: torch.device,
) -> tuple[list[float], list[float]]:
    """The seconds that each took for every piece; the order alternates with every piece."""
    seconds: dict[Callable[[Any], None], list[float]] = {ours: [], plain: []}
    order = [ours, plain]
    for piece in pieces:
        for run in order:
            with added_to(seconds[run], device):
                run(piece)
        order.reverse()
    return seconds[ours], seconds[plain]

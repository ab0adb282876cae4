"""Calibrates once, solves by every method, and measures each at every size.

A compressed layer computes the same in any stored form, so during a measurement the product of its
factors replaces the dense layer's weight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bench.material import batches, calibrated, groups_of, solved, truncated
from bench.quality_rows import Contender, Row
from workers.compression.allocation import ALLOCATIONS
from workers.compression.candidates import Forms, LayerCandidates, total_cost
from workers.compression.metrics import METHODS
from workers.compression.shapes import InputGroup
from workers.compression.solve import Factors, Solution
from workers.compression.statistics import GroupStatistics
from workers.evaluation.losses import TextLoss
from workers.evaluation.text import text_loss
from workers.text.sequences import in_batches

BATCH = 8


@dataclass(frozen=True)
class Texts:
    """The token sequences for calibration, and those for measurements by name."""

    calibration: list[list[int]]
    measured: dict[str, list[list[int]]]


class Laboratory:
    """A model with the statistics of every method, observed in one calibration."""

    def __init__(self, model: Any, texts: Texts, methods: Sequence[str]) -> None:
        self._model = model
        self._texts = texts
        self._methods = methods
        self._groups: tuple[InputGroup, ...] = groups_of(model)
        self._statistics: dict[str, GroupStatistics] | None = None
        self._solved: tuple[str, dict[str, Solution]] | None = None

    def dense(self) -> dict[str, float]:
        """The perplexities of the model in its current state."""
        return {name: self._perplexity(each) for name, each in self._texts.measured.items()}

    def row(self, contender: Contender, keep: float) -> Row:
        """Compress and measure. Raises BudgetTooSmall and SolveFailed."""
        solutions = self.solutions(contender.method)
        options = [solution.options(contender.storage) for solution in solutions.values()]
        linear = sum(layer.dense_cost for layer in options)
        ranks = ALLOCATIONS[contender.allocation](options)(math.floor(keep * linear))
        with compressed(self._model, solutions, ranks):
            perplexity = self.dense()
        return Row(contender.name, keep, _kept(options, ranks), _dense_layers(ranks), perplexity)

    def solutions(self, method: str) -> dict[str, Solution]:
        """The solutions of a method; only those of the last method stay in memory."""
        if self._solved is None or self._solved[0] != method:
            self._solved = None
            self._solved = method, dict(self._solve(method))
        return self._solved[1]

    def _solve(self, method: str) -> Iterator[tuple[str, Solution]]:
        if self._statistics is None:
            self._statistics = self._calibrate()
        for group in self._groups:
            statistics = self._statistics[group.name]
            yield from solved(self._model, group, statistics, METHODS[method]).items()

    def _calibrate(self) -> dict[str, GroupStatistics]:
        observations = frozenset[Any]().union(
            *(METHODS[method].observations for method in self._methods)
        )
        device = next(self._model.parameters()).device
        text = batches(self._texts.calibration, BATCH, device)
        return calibrated(self._model, self._groups, text, observations)

    def _perplexity(self, sequences: list[list[int]]) -> float:
        losses = (text_loss(self._model, batch) for batch in in_batches(sequences, BATCH))
        return TextLoss.total(losses).perplexity


@contextmanager
def compressed(model: Any, solutions: Mapping[str, Solution], ranks: Forms) -> Iterator[None]:
    """Truncate every layer to its rank inside the context; restore the model afterwards."""
    originals = {name: model.get_submodule(name) for name in ranks}
    parameters = {name: (module.weight, module.bias) for name, module in originals.items()}
    try:
        for name, rank in ranks.items():
            if isinstance(rank, int):
                _put(originals[name], truncated(model, solutions[name], rank))
        yield
    finally:
        for name, (weight, bias) in parameters.items():
            originals[name].weight, originals[name].bias = weight, bias


def _put(module: Any, factors: Factors) -> None:
    """Give the module new parameters; its own are put back later."""

    def parameter(tensor: Tensor) -> nn.Parameter:
        return nn.Parameter(tensor.to(module.weight), requires_grad=False)

    module.bias = None if factors.bias is None else parameter(factors.bias)
    module.weight = parameter(factors.up @ factors.down)


def _kept(options: Sequence[LayerCandidates], ranks: Forms) -> float:
    return total_cost(options, ranks) / sum(layer.dense_cost for layer in options)


def _dense_layers(ranks: Forms) -> int:
    return sum(rank is None for rank in ranks.values())

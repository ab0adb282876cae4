"""Chooses the form of every layer from a job's targets, which are sizes and qualities.

Sizes are counted in parameters for ranks, and in bytes for fewer bits. Pure functions: a callback
measures the quality of a choice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from service.domain.costs.sizes import (
    byte_budget,
    bytes_unreachable,
    keep_unreachable,
    linear_budget,
)
from service.domain.spec.job import JobSpec
from service.domain.spec.targets import (
    JOINING,
    WIDTHS,
    ByteTarget,
    Optimize,
    Precisions,
    QualityTarget,
    SizeTarget,
    rounds_embeddings,
)
from service.errors import TargetUnreachable
from workers.compression.candidates import (
    Forms,
    LayerCandidates,
    Width,
    faster_than_dense,
    least_cost,
)
from workers.compression.errors import BudgetTooSmall
from workers.compression.rounding.allocation import ByteBudget
from workers.compression.shapes import VocabularyMatrix

KEEP_STEPS = 200
"""The number of candidate sizes for a quality target: the multiples of 1/200 (half a percent) of
what the compressible layers have, below all of it, and the smallest possible size."""

MAX_PROBES = KEEP_STEPS.bit_length()
"""The largest number of measurements for a bisection over KEEP_STEPS sizes."""

Increase = Callable[[Forms, str], float]
"""How much the perplexity on a dataset exceeds the dense model's: 0.1 is 10 percent."""


@dataclass(frozen=True)
class Budgets:
    """What sizes a kind of choice can have: in parameters, or in bytes."""

    allocate: Callable[[int], Forms]  # raises BudgetTooSmall
    least: int
    dense: int  # of the compressible layers as they are
    chosen: str  # for a layer, in the words of an error's message
    counted: str  # in all layers, likewise

    def candidates(self) -> list[int]:
        """The sizes to try for a quality target, ascending, all below that of the dense layers.

        Empty if the smallest choice is no smaller than the dense layers.
        """
        steps = [self.dense * step // KEEP_STEPS for step in range(1, KEEP_STEPS)]
        larger = [budget for budget in steps if budget > self.least]
        return [self.least, *larger] if self.least < self.dense else []


class Choices:
    """Chooses forms for a job's targets from what was solved, all from one calibration.

    `parameters` is the size of the whole dense model; `units` are the layers that share an input;
    `vocabulary` is what targets with rounded embeddings round beside the layers.
    """

    def __init__(
        self,
        spec: JobSpec,
        parameters: int,
        options: Sequence[LayerCandidates],
        units: Sequence[Collection[str]],
        vocabulary: Sequence[VocabularyMatrix] = (),
    ) -> None:
        self._spec = spec
        self._parameters = parameters
        self._options = options
        self._units = units
        self._vocabulary = vocabulary
        self._linear = sum(layer.dense_cost for layer in options)
        self._ranks: dict[Optimize, Budgets] = {}
        self._bits: dict[Precisions, Budgets] = {}

    def of_targets(self, increase: Increase) -> list[Forms]:
        """The forms of every target. Raises TargetUnreachable naming the first that none meet."""
        return [
            self._of_target(target, f"targets.{number}", increase)
            for number, target in enumerate(self._spec.targets)
        ]

    def of_curve(self) -> list[Forms]:
        """The ranks of every size of `evaluation.curve`. Raises TargetUnreachable."""
        return [
            self._of_size(SizeTarget(keep=keep), f"evaluation.curve.{number}")
            for number, keep in enumerate(self._spec.evaluation.curve)
        ]

    def _of_target(
        self, target: SizeTarget | ByteTarget | QualityTarget, param: str, increase: Increase
    ) -> Forms:
        match target:
            case SizeTarget():
                return self._of_size(target, f"{param}.keep")
            case ByteTarget():
                return self._of_bytes(target, param)
            case QualityTarget():
                return self._of_quality(target, f"{param}.max_perplexity_increase", increase)

    def _of_size(self, target: SizeTarget, param: str) -> Forms:
        budgets = self._budgets_of_ranks(target.optimize)
        try:
            return budgets.allocate(linear_budget(target, self._parameters, self._linear))
        except BudgetTooSmall as error:
            raise keep_unreachable(
                target, self._parameters, self._linear, budgets.least, param
            ) from error

    def _of_bytes(self, target: ByteTarget, param: str) -> Forms:
        budgets = self._budgets(target.precisions)
        counted = self._linear if target.scope == "linear" else self._parameters
        matrices = self._vocabulary if rounds_embeddings(target) else ()
        others = 0 if target.scope == "linear" else self._bytes_of_others(matrices)
        try:
            forms = budgets.allocate(byte_budget(target, counted, others))
        except BudgetTooSmall as error:
            raise bytes_unreachable(target, counted, others, budgets.least, param) from error
        return {**forms, **{matrix.name: Width(target.embedding_bits) for matrix in matrices}}

    def _of_quality(self, target: QualityTarget, param: str, increase: Increase) -> Forms:
        budgets = self._budgets(target.precisions)
        sizes = budgets.candidates()
        if not sizes:
            raise TargetUnreachable(f"No {budgets.chosen} makes this model smaller.", param=param)
        tried: dict[int, tuple[Forms, float]] = {}

        def meets(candidate: int) -> bool:
            forms = budgets.allocate(sizes[candidate])
            increased = increase(forms, target.dataset)
            tried[candidate] = forms, increased
            return increased <= target.max_perplexity_increase

        found = smallest_that_meets(len(sizes), meets)
        if found is None:
            _, increased = tried[len(sizes) - 1]
            raise TargetUnreachable(
                f"{target.name} is out of reach: at the largest size tried, "
                f"{sizes[-1] / budgets.dense:.1%} of the compressible {budgets.counted}, the "
                f"perplexity on '{target.dataset}' is {1 + increased:.4g} times the dense model's.",
                param=param,
            )
        forms, _ = tried[found]
        return forms

    def _budgets(self, precisions: Precisions | None) -> Budgets:
        if precisions is None:
            return self._budgets_of_ranks("size")
        if precisions not in self._bits:
            self._bits[precisions] = self._budgets_of_bits(precisions)
        return self._bits[precisions]

    def _budgets_of_ranks(self, optimize: Optimize) -> Budgets:
        if optimize not in self._ranks:
            # This imports torch, which would delay the driver's start.
            from workers.compression.allocation import ALLOCATIONS

            options = self._options
            if optimize == "speed":
                joined = {name for unit in self._units if len(unit) > 1 for name in unit}
                options = [faster_than_dense(each, joined=each.name in joined) for each in options]
            self._ranks[optimize] = Budgets(
                ALLOCATIONS[self._spec.allocation](options),
                least_cost(options),
                self._linear,
                "rank",
                "parameters",
            )
        return self._ranks[optimize]

    def _budgets_of_bits(self, precisions: Precisions) -> Budgets:
        units = self._units if precisions in JOINING else [[layer.name] for layer in self._options]
        budget = ByteBudget(self._options, units, [Width(bits) for bits in WIDTHS[precisions]])
        dense = sum(layer.dense_bytes for layer in self._options)
        return Budgets(budget.allocate, budget.least, dense, "width", "bytes")

    def _bytes_of_others(self, rounded: Sequence[VocabularyMatrix]) -> int:
        """What is not in compressible layers, in the artifacts' precision but for `rounded`."""
        number_bytes = sum(layer.dense_bytes for layer in self._options) // self._linear
        dense = self._parameters - self._linear - sum(each.rows * each.columns for each in rounded)
        return dense * number_bytes + sum(each.stored_bytes(number_bytes) for each in rounded)


def smallest_that_meets(count: int, meets: Callable[[int], bool]) -> int | None:
    """Find the smallest of the sizes 0 to `count` − 1 that meets a bound, by bisection.

    The returned size was tested and meets the bound; the size below it, if any, was tested and
    does not. This holds even if `meets` is not monotone. Returns None if the largest size does not
    meet the bound. Calls `meets` at most ⌈log2(count + 1)⌉ times.
    """
    fails, answer = -1, count
    while answer - fails > 1:
        middle = (fails + answer) // 2
        if meets(middle):
            answer = middle
        else:
            fails = middle
    return answer if answer < count else None

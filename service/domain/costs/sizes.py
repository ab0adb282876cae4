"""What sizes the targets of a job can have, by the shapes of its model alone.

The engine chooses ranks and bits by what calibration finds, within a budget that is known before:
a size here is the most that an artifact takes, and the choice comes near it. The formulas and the
errors are the engine's; a test compares them.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial

from service.domain.costs.formulas import largest_rank, rank_cost, stored_bytes
from service.domain.costs.shapes import NUMBER_BYTES, Group, Linear, Model
from service.domain.spec import (
    JOINING,
    SIDES,
    WIDTHS,
    ByteTarget,
    JobSpec,
    Precisions,
    QualityTarget,
    SizeTarget,
    Target,
)
from service.errors import TargetUnreachable

BYTES_OF_16_BITS = 2
ORDER_BYTES = 4
"""Of each output of a low-rank layer, for its place."""


@dataclass(frozen=True)
class TargetSize:
    """The most that an artifact's weights have; without headers of files, which take kilobytes."""

    parameters: int
    bytes: int
    linear_parameters: int
    linear_bytes: int


class Sizes:
    """The sizes of a job's targets."""

    def __init__(self, model: Model, spec: JobSpec) -> None:
        self._model, self._spec = model, spec
        self._number_bytes = NUMBER_BYTES[model.dtype if spec.dtype == "auto" else spec.dtype]
        self._groups: Counter[Group] = Counter()
        for block in model.blocks:
            for group in block.groups:
                self._groups[group] += group.copies
        self._layers: Counter[Linear] = Counter()
        for group, copies in self._groups.items():
            for layer in group.layers:
                self._layers[layer] += copies
        self._others = model.parameters - model.linear

    @property
    def bytes_of_dense(self) -> int:
        """Of the whole model in the artifacts' precision."""
        return self._model.parameters * self._number_bytes

    def of(self, target: Target, param: str) -> TargetSize | None:
        """The size of a target, which is the field `param`; None if calibration decides it.

        Raises TargetUnreachable for what no calibration can change.
        """
        if not isinstance(target, SizeTarget) and target.precisions is not None:
            self._check_integers(target.precisions, f"{param}.precisions")
        match target:
            case SizeTarget():
                return self.of_keep(target, f"{param}.keep")
            case ByteTarget():
                return self._of_bytes(target, param)
            case QualityTarget():
                self._check_quality(target, f"{param}.max_perplexity_increase")
                return None

    def of_keep(self, target: SizeTarget, param: str) -> TargetSize:
        """The size of a target in parameters. Raises TargetUnreachable."""
        model = self._model
        budget = linear_budget(target, model.parameters, model.linear)
        if budget < self._least_parameters:
            raise keep_unreachable(
                target, model.parameters, model.linear, self._least_parameters, param
            )
        kept = self._uniform(budget) if self._spec.allocation == "uniform" else budget
        order = sum(count * layer.outputs for layer, count in self._layers.items())
        wider = (ORDER_BYTES - self._number_bytes) * order
        return TargetSize(
            self._others + kept,
            (self._others + kept) * self._number_bytes + wider,
            kept,
            kept * self._number_bytes,
        )

    def _of_bytes(self, target: ByteTarget, param: str) -> TargetSize:
        model = self._model
        linear = target.scope == "linear"
        others = 0 if linear else self._others * self._number_bytes
        whole = (model.linear if linear else model.parameters) * BYTES_OF_16_BITS
        wanted = target.bytes or math.floor((target.bytes_fraction or 0) * whole)
        least = self._least_bytes(target.precisions)
        if wanted - others < least:
            raise TargetUnreachable(
                f"{target.name} is out of reach: the smallest size that '{target.precisions}' "
                f"loads is {least + others} bytes, a fraction of "
                f"{math.ceil((least + others) / whole * 1000) / 1000}"
                f"{'' if linear else f'; {others} of them are not in layers'}.",
                param=f"{param}.{'bytes_fraction' if target.bytes is None else 'bytes'}",
            )
        taken = min(wanted - others, model.linear * self._number_bytes)
        in_all = taken + self._others * self._number_bytes
        return TargetSize(model.parameters, in_all, model.linear, taken)

    def _check_quality(self, target: QualityTarget, param: str) -> None:
        if target.precisions is None:
            chosen, least, dense = "rank", self._least_parameters, self._model.linear
        else:
            dense = self._model.linear * self._number_bytes
            chosen, least = "width", self._least_bytes(target.precisions)
        if least >= dense:
            raise TargetUnreachable(f"No {chosen} makes this model smaller.", param=param)

    def _check_integers(self, precisions: Precisions, param: str) -> None:
        if any(group.copies > 1 for group in self._groups):
            raise TargetUnreachable(
                "Layers of this model are stored together, as experts are, or transposed. They "
                "cannot be stored as integers yet: use 'keep'.",
                param=param,
            )
        side = SIDES.get(precisions, 1)
        for layer in self._layers:
            if layer.inputs % side or layer.outputs % side:
                raise TargetUnreachable(
                    f"'{precisions}' has integers only for layers whose numbers of inputs and "
                    f"outputs are multiples of {side}; one has {layer.inputs} and "
                    f"{layer.outputs}: choose other precisions.",
                    param=param,
                )

    @cached_property
    def _least_parameters(self) -> int:
        """Of the compressible layers at their lowest ranks."""
        method = self._spec.method
        return sum(count * rank_cost(layer, 1, method) for layer, count in self._layers.items())

    def _least_bytes(self, precisions: Precisions) -> int:
        """Of the compressible layers at their smallest: in integers, or as they are."""
        units: Counter[tuple[Linear, ...]] = Counter()
        for group, copies in self._groups.items():
            joined = [group.layers] if precisions in JOINING else [(la,) for la in group.layers]
            for unit in joined:
                units[unit] += copies
        return sum(
            count
            * min(
                sum(layer.parameters * self._number_bytes for layer in unit),
                *(
                    sum(stored_bytes(layer, bits, self._number_bytes) for layer in unit)
                    for bits in WIDTHS[precisions]
                ),
            )
            for unit, count in units.items()
        )

    def _uniform(self, budget: int) -> int:
        """The parameters of layers that all keep the same fraction, rounded down to ranks."""
        method, keep, kept = self._spec.method, budget / self._model.linear, 0
        for layer, count in self._layers.items():
            ranks = range(1, largest_rank(layer, method) + 1)
            cost = partial(rank_cost, layer, method=method)
            affordable = bisect_right(ranks, keep * layer.parameters, key=cost)
            kept += count * rank_cost(layer, max(1, affordable), method)
        return min(kept, budget)


def linear_budget(target: SizeTarget, parameters: int, linear: int) -> int:
    """How many of `linear` parameters the compressible layers may keep together for a target.

    With the scope `model` the rest of the model, which stays dense, counts against `keep`.
    """
    if target.scope == "linear":
        return math.floor(target.keep * linear)
    return math.floor(target.keep * parameters) - (parameters - linear)


def smallest_keep(target: SizeTarget, parameters: int, linear: int, least: int) -> float:
    """The smallest fraction, rounded up to thousandths, that the target's scope allows.

    `least` is the smallest number of parameters of the compressible layers, which have `linear`.
    """
    whole, fixed = (linear, 0) if target.scope == "linear" else (parameters, parameters - linear)
    return math.ceil((fixed + least) / whole * 1000) / 1000


def keep_unreachable(
    target: SizeTarget, parameters: int, linear: int, least: int, param: str
) -> TargetUnreachable:
    """The error for a target below what the compressible layers have at least."""
    smallest = smallest_keep(target, parameters, linear, least)
    return TargetUnreachable(
        f"{target.name} is out of reach: the smallest keep of this model with the scope "
        f"'{target.scope}', optimized for {target.optimize}, is {smallest:.3f}.",
        param=param,
    )

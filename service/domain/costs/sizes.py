"""What sizes the targets of a job can have, by the shapes of its model alone.

The engine chooses ranks and bits by what calibration finds, within a budget that is known before:
a size here is the most that an artifact takes, and the choice comes near it. The formulas and the
errors are the engine's; a test compares them.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from dataclasses import dataclass

from service.domain.costs.formulas import largest_rank, rank_cost, stored_bytes
from service.domain.costs.shapes import NUMBER_BYTES, Group, Linear, Model
from service.domain.spec.job import JobSpec
from service.domain.spec.targets import (
    JOINING,
    SIDES,
    WIDTHS,
    ByteTarget,
    Optimize,
    Precisions,
    QualityTarget,
    SizeTarget,
    Target,
    rounds_embeddings,
)
from service.errors import TargetUnreachable

BYTES_OF_16_BITS = 2
ORDER_BYTES = 4
"""Of each output of a low-rank layer, for its place."""
TILE, LARGE_SIDE = 8, 256
"""As in `workers.compression.solve`."""
FAST_TILE, SECOND_PRODUCT = 32, 1 << 19
"""As in `workers.compression.candidates`, for `optimize: speed`."""


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
        self._layers: Counter[_Layer] = Counter()
        for group, copies in self._groups.items():
            for shape in group.layers:
                self._layers[_Layer(shape, spec.method, len(group.layers) > 1)] += copies
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
        least = self._least_parameters(target.optimize)
        if budget < least:
            raise keep_unreachable(target, model.parameters, model.linear, least, param)
        uniform = self._spec.allocation == "uniform"
        kept = self._uniform(budget, target.optimize) if uniform else budget
        order = sum(count * layer.shape.outputs for layer, count in self._layers.items())
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
        outside = self._others * self._number_bytes
        if rounds_embeddings(target):
            outside -= self._saved_in_vocabulary
        counted, others = (model.linear, 0) if linear else (model.parameters, outside)
        budget = byte_budget(target, counted, others)
        least = self._least_bytes(target.precisions)
        if budget < least:
            raise bytes_unreachable(target, counted, others, least, param)
        taken = min(budget, model.linear * self._number_bytes)
        return TargetSize(model.parameters, outside + taken, model.linear, taken)

    @property
    def _saved_in_vocabulary(self) -> int:
        """The bytes that an embedding and an output layer of 8 bits save, tied or not."""
        scales = 2 * self._model.vocabulary * self._number_bytes
        return self._model.in_vocabulary * (self._number_bytes - 1) - scales

    def _check_quality(self, target: QualityTarget, param: str) -> None:
        if target.precisions is None:
            chosen, least, dense = "rank", self._least_parameters("size"), self._model.linear
        else:
            dense = self._model.linear * self._number_bytes
            chosen, least = "width", self._least_bytes(target.precisions)
        if least >= dense:
            raise TargetUnreachable(f"No {chosen} makes this model smaller.", param=param)

    def _check_integers(self, precisions: Precisions, param: str) -> None:
        if any(group.copies > 1 for group in self._groups):
            raise stored_together(param)
        side = SIDES.get(precisions, 1)
        for shape in (layer.shape for layer in self._layers):
            if shape.inputs % side or shape.outputs % side:
                raise sides_unreachable(precisions, "one", shape.inputs, shape.outputs, param)

    def _least_parameters(self, optimize: Optimize) -> int:
        """Of the compressible layers at their lowest ranks."""
        lowest = ((layer.ranks(optimize)[:1], layer, n) for layer, n in self._layers.items())
        return sum(n * layer.cost(ranks[0] if ranks else None) for ranks, layer, n in lowest)

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

    def _uniform(self, budget: int, optimize: Optimize) -> int:
        """The parameters of layers that all keep the same fraction, rounded down to ranks."""
        ranks = {layer: layer.ranks(optimize) for layer in self._layers}
        kept = sum(n * layer.cost(None) for layer, n in self._layers.items() if not ranks[layer])
        keep = (budget - kept) / max(1, self._model.linear - kept)
        for layer, possible in ranks.items():
            if possible:
                affordable = bisect_right(possible, keep * layer.cost(None), key=layer.cost)
                kept += self._layers[layer] * layer.cost(possible[max(affordable, 1) - 1])
        return min(kept, budget)


@dataclass(frozen=True)
class _Layer:
    """A layer, and whether engines join it to others with the same input."""

    shape: Linear
    method: str
    joined: bool

    def cost(self, rank: int | None) -> int:
        """The parameters at this rank, or dense."""
        return self.shape.parameters if rank is None else rank_cost(self.shape, rank, self.method)

    def ranks(self, optimize: Optimize) -> range:
        """The ranks that it can have; if there are none, it stays dense."""
        most = largest_rank(self.shape, self.method)
        tile = TILE if self.shape.smaller_side >= LARGE_SIDE else 1
        if optimize == "size":
            return range(tile, most + 1, tile)
        spare = self.shape.parameters - SECOND_PRODUCT * (1 + self.joined)
        ranks = range(FAST_TILE, most + 1, FAST_TILE)
        return ranks[: bisect_left(ranks, spare, key=self.cost)]


def linear_budget(target: SizeTarget, parameters: int, linear: int) -> int:
    """How many of `linear` parameters the compressible layers may keep together for a target.

    With the scope `model` the rest of the model, which stays dense, counts against `keep`.
    """
    if target.scope == "linear":
        return math.floor(target.keep * linear)
    return math.floor(target.keep * parameters) - (parameters - linear)


def keep_unreachable(
    target: SizeTarget, parameters: int, linear: int, least: int, param: str
) -> TargetUnreachable:
    """The error for a target below `least`, what the compressible layers have at least."""
    whole, fixed = (linear, 0) if target.scope == "linear" else (parameters, parameters - linear)
    smallest = math.ceil((fixed + least) / whole * 1000) / 1000
    return TargetUnreachable(
        f"{target.name} is out of reach: the smallest keep of this model with the scope "
        f"'{target.scope}', optimized for {target.optimize}, is {smallest:.3f}.",
        param=param,
    )


def byte_budget(target: ByteTarget, counted: int, others: int) -> int:
    """How many bytes the compressible layers may take.

    The target's scope has `counted` parameters, and `others` bytes that are not in these layers.
    """
    whole = counted * BYTES_OF_16_BITS
    return (target.bytes or math.floor((target.bytes_fraction or 0) * whole)) - others


def bytes_unreachable(
    target: ByteTarget, counted: int, others: int, least: int, param: str
) -> TargetUnreachable:
    """The error for a budget below `least`, the bytes of the compressible layers at least."""
    smallest, whole = least + others, counted * BYTES_OF_16_BITS
    return TargetUnreachable(
        f"{target.name} is out of reach: the smallest size that '{target.precisions}' "
        f"loads is {smallest} bytes, a fraction of {math.ceil(smallest / whole * 1000) / 1000}"
        f"{'' if target.scope == 'linear' else f'; {others} of them are not in layers'}.",
        param=f"{param}.{'bytes_fraction' if target.bytes is None else 'bytes'}",
    )


def stored_together(param: str) -> TargetUnreachable:
    """The error for integers in a model whose layers cannot have them yet."""
    return TargetUnreachable(
        "Layers of this model are stored together, as experts are, or transposed. They cannot be "
        "stored as integers yet: use 'keep'.",
        param=param,
    )


def sides_unreachable(
    precisions: Precisions, layer: str, inputs: int, outputs: int, param: str
) -> TargetUnreachable:
    """The error for a layer whose sides an engine has no integers for; `layer` is its subject."""
    return TargetUnreachable(
        f"'{precisions}' has integers only for layers whose numbers of inputs and outputs are "
        f"multiples of {SIDES[precisions]}; {layer} has {inputs} and {outputs}: choose other "
        "precisions.",
        param=param,
    )

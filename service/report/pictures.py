"""The data of a report's pictures. `service/assets/pictures.js` draws charts; maps are SVG."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from service.quantities import size_text
from service.report.fields import Part, at, names
from service.report.loading import is_low_rank

BLOCKS_IN_CHART = 5
"""Spectra of so many blocks are in one chart: the first, the last, and those between."""

MAX_EXPLAINED_CELLS = 1000

SHADES = 10
"""Of a map's cells, from little kept to all kept."""

_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Axis:
    """What is along an axis of a chart."""

    label: str
    logarithmic: bool = False
    percent: bool = False


@dataclass(frozen=True)
class Series:
    """Points [x, y], or [x, y, error], in the order of x; `names` are shown beside them."""

    label: str
    points: tuple[tuple[float, ...], ...]
    names: tuple[str, ...] = ()
    line: bool = True
    hollow: bool = False
    """Whether its points are rings, which hide no other."""


@dataclass(frozen=True)
class Chart:
    """Lines and points over one pair of axes."""

    title: str
    says: str
    """What one sees, in a sentence."""
    x: Axis
    y: Axis
    series: tuple[Series, ...]

    @property
    def data(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class MapCell:
    """One kind of layer in one block."""

    block: int
    kept: float
    """The share of its parameters, or of 16 bits for each."""
    words: str
    dense: bool

    @property
    def shade(self) -> str:
        """Of the cell's colour; a layer that stayed dense has one of its own."""
        return "dense" if self.dense else str(min(SHADES, max(0, round(self.kept * SHADES))))


@dataclass(frozen=True)
class MapRow:
    """One kind of layer over all blocks."""

    kind: str
    cells: tuple[MapCell, ...]

    @property
    def kept(self) -> tuple[float, float, float]:
        """The least, the median and the most."""
        shares = [cell.kept for cell in self.cells]
        return min(shares), median(shares), max(shares)

    @property
    def dense(self) -> int:
        """In how many blocks it stayed as it was."""
        return sum(cell.dense for cell in self.cells)


@dataclass(frozen=True)
class Heatmap:
    """How much of every layer an artifact keeps."""

    name: str
    blocks: int
    rows: tuple[MapRow, ...]

    @property
    def explained(self) -> bool:
        """Whether each cell says what it is when one points at it: thousands are too many."""
        return sum(len(row.cells) for row in self.rows) <= MAX_EXPLAINED_CELLS


def kind_of(name: str) -> str:
    """What layers of all blocks have in common: their names' last two parts, without numbers.

    >>> kind_of("model.layers.11.self_attn.q_proj"), kind_of("model.layers.3.mlp.experts.7.w1")
    ('self_attn.q_proj', 'experts.w1')
    """
    return ".".join([part for part in name.split(".") if not part.isdecimal()][-2:])


def block_of(name: str) -> int:
    """The number of the block that the layer is in; 0 if its name has none."""
    found = _BLOCK.search(name)
    return int(found[1]) if found else 0


def curve(report: Part, targets: Sequence[Part]) -> Chart | None:
    """Perplexity over size: the dense model, the artifacts and every size that was measured."""
    points = [each for each in report.get("curve") or () if "linear_fraction" in each]
    texts = names(points, "perplexity")
    if not texts:
        return None
    made = {str(target.get("name")): target for target in targets}
    series = []
    shown = [each for each in points if not _is_of_bits(each) and not _is_as_cut(each, targets)]
    for text in texts:
        found = sorted(
            (_size(point, made), at(point, "perplexity", text), _name(point))
            for point in shown
            if at(point, "perplexity", text) is not None
        )
        places = tuple(
            (size, perplexity, _error(made.get(name), text)) for size, perplexity, name in found
        )
        series.append(Series(text, places, tuple(name for *_, name in found), line=False))
        before = sorted(
            (_size(point, made), perplexity, _name(point))
            for point in shown
            if (perplexity := _before(made.get(_name(point)), text)) is not None
        )
        if before:
            cut = tuple((size, perplexity) for size, perplexity, _ in before)
            label = f"{text}, before recovery"
            cut_names = tuple(name for *_, name in before)
            series.append(Series(label, cut, cut_names, line=False, hollow=True))
    return Chart(
        "Size and quality",
        "Lower is better; the dense model is at 100%. Bars are standard errors of the change.",
        Axis("size of the linear layers: parameters, or bits of 16", percent=True),
        Axis("perplexity", logarithmic=True),
        tuple(series),
    )


def _size(point: Part, made: Mapping[str, Part]) -> float:
    """Of the linear layers, beside dense ones: in parameters for low rank, in bits for integers."""
    target = made.get(str(point.get("name")), {})
    own = None if is_low_rank(target) else at(target, "size", "linear_bytes_fraction")
    return float(point["linear_fraction"] if own is None else own)


def _before(target: Part | None, text: str) -> float | None:
    """The perplexity of a target before its recovery; None if that has gained nothing."""
    if at(target, "recovery", "kept_step") == 0:
        return None
    found: float | None = at(target, "recovery", "perplexity_before", text)
    return found


def _is_as_cut(point: Part, targets: Sequence[Part]) -> bool:
    """Whether it is the probe of a target before its recovery, which has a place of its own."""
    befores = [at(target, "recovery", "perplexity_before") for target in targets]
    return point.get("kind") == "probe" and point.get("perplexity") in befores


def recovery(targets: Sequence[Part]) -> Chart | None:
    """How the divergence from the dense model's predictions falls while layers are trained."""
    series = [
        Series(
            str(target.get("name")),
            tuple((each[0], each[1]) for each in checks if _has_logarithm(each)),
        )
        for target in targets
        if (checks := at(target, "recovery", "checks"))
    ]
    if not series:
        return None
    return Chart(
        "Recovery",
        "How far the predictions are from the dense model's, on text that is kept aside from the "
        "training: the divergence, in nats per token. Lower is better.",
        Axis("steps of training"),
        Axis("divergence", logarithmic=True),
        tuple(series),
    )


def _has_logarithm(check: Sequence[float | None]) -> bool:
    """Whether the divergence of a check is known, and no rounding error."""
    return len(check) > 1 and check[1] is not None and check[1] > 0


def _is_of_bits(point: Part) -> bool:
    """Whether it is a probe of integers, whose size a report does not have."""
    return point.get("kind") == "probe" and point["linear_fraction"] >= 1


def _name(point: Part) -> str:
    return str(point.get("name") or point.get("kind"))


def _error(target: Part | None, text: str) -> float:
    """The standard error of a target's change of perplexity; 0 for the dense model and probes."""
    measured = at(target, "perplexity", text) or {}
    wanted = ("perplexity", "ratio", "ratio_standard_error")
    perplexity, ratio, error = map(measured.get, wanted)
    return float(perplexity / ratio * error) if perplexity and ratio and error else 0.0


def kept_by_block(target: Part) -> Heatmap | None:
    """The share of its bytes that each layer keeps, by kind and block; experts by their median."""
    layers: Sequence[Part] = target.get("layers") or ()
    found: dict[str, dict[int, list[Part]]] = {}
    for layer in layers:
        name = str(layer.get("name"))
        if _share(layer) is not None:
            found.setdefault(kind_of(name), {}).setdefault(block_of(name), []).append(layer)
    if not found:
        return None
    rows = tuple(
        MapRow(kind, tuple(_cell(block, alike) for block, alike in sorted(blocks.items())))
        for kind, blocks in found.items()
    )
    blocks = 1 + max(cell.block for row in rows for cell in row.cells)
    return Heatmap(str(target.get("name")), blocks, rows)


def _cell(block: int, layers: Sequence[Part]) -> MapCell:
    shares = [share for layer in layers if (share := _share(layer)) is not None]
    words = _form(layers[0])
    if len(layers) > 1:
        least, most = min(shares), max(shares)
        words = f"median of {len(layers)} experts, {least:.0%} to {most:.0%}"
    return MapCell(block, median(shares), words, all(map(_is_dense, layers)))


def _is_dense(layer: Part) -> bool:
    return layer.get("rank") is None and layer.get("bits") is None


def _share(layer: Part) -> float | None:
    """Of its parameters in low rank; as integers, of 16 bits for each. None if it is not known."""
    if _is_dense(layer):
        return 1.0
    inputs, outputs = layer.get("in_features"), layer.get("out_features")
    kept = layer.get("bytes" if layer.get("rank") is None else "parameters")
    if not inputs or not outputs or kept is None:
        return None
    return float(min(1.0, kept / (inputs * outputs * (2 if layer.get("rank") is None else 1))))


def _form(layer: Part) -> str:
    words = "dense"
    if layer.get("rank") is not None:
        words = f"rank {layer['rank']}"
    elif layer.get("bits") is not None:
        words = f"{layer['bits']} bits"
    return words if layer.get("bytes") is None else f"{words}, {size_text(layer['bytes'])}"


def spectra(found: Sequence[Part]) -> tuple[Chart, ...]:
    """By kind: how much of a layer's energy its first directions hold, in some blocks."""
    says = "The sooner a line reaches the top, the fewer directions the layer needs."
    axes = Axis("directions kept", logarithmic=True), Axis("energy kept", percent=True)
    return _by_kind(found, "ranks", "kept", says, *axes)


def importance(found: Sequence[Part]) -> tuple[Chart, ...]:
    """By kind: how much of the importance the most important outputs have (the paper's Figure 1).

    Importance is the mean squared gradient of the loss with respect to an output.
    """
    says = "The sooner a line reaches the top, the fewer outputs matter to the loss."
    axes = Axis("most important outputs", logarithmic=True), Axis("importance", percent=True)
    return _by_kind(found, "outputs", "importance", says, *axes)


def _by_kind(
    found: Sequence[Part], counts: str, shares: str, says: str, x: Axis, y: Axis
) -> tuple[Chart, ...]:
    """A chart for each kind of layer, with a line for each of some blocks."""
    kinds: dict[str, dict[int, Part]] = {}
    for each in found:
        name = str(each.get("name"))
        if each.get(counts) and len(each[counts]) == len(each.get(shares) or ()):
            kinds.setdefault(kind_of(name), {}).setdefault(block_of(name), each)
    return tuple(
        Chart(
            kind,
            says,
            x,
            y,
            tuple(
                Series(
                    f"block {block}",
                    tuple(zip(blocks[block][counts], blocks[block][shares], strict=True)),
                )
                for block in _spread(sorted(blocks))
            ),
        )
        for kind, blocks in kinds.items()
    )


def _spread(numbers: Sequence[int]) -> Iterator[int]:
    """The first, the last, and some between."""
    count = min(BLOCKS_IN_CHART, len(numbers))
    places = {round(step * (len(numbers) - 1) / max(1, count - 1)) for step in range(count)}
    return (numbers[place] for place in sorted(places))

"""The report on quality in Markdown, from measured rows; pure functions on plain data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from bench.quality_advantage import Advantage, Point, advantage, best
from bench.quality_notes import ADVANTAGE, HEADER, METHOD
from bench.quality_rows import HELD_OUT, PEERS, Contender, Row
from workers.compression.candidates import Storage

IMPACT_ADVANTAGE = 0.554
"""The largest advantage that IMPACT's authors report over the best of svd, fwsvd and afm."""

DEFAULT_ADVANTAGE = 1.0
DEFAULT_RATIOS = {0.8: 1.18, 0.6: 1.75}
"""By keep, the largest allowed ratio of our held-out perplexity to the dense model's."""

IMPACT_GLOBAL = Contender("impact", "global", Storage.INTERPOLATIVE).name

Curves = Mapping[str, Mapping[float, Point]]
"""The measured points by contender and requested keep."""


def report(rows: Sequence[Row], settings: Mapping[str, Any]) -> str:
    """The whole page; `settings` describe the run of `bench.quality`."""
    dense, *compressed = rows
    texts = list(dense.perplexity)
    names = dict.fromkeys([IMPACT_GLOBAL, settings["default"]])  # these may be equal
    parts = [
        HEADER,
        _settings(settings),
        *(f"## Perplexity, {text}\n\n{_perplexities(dense, compressed, text)}" for text in texts),
        ADVANTAGE,
        *(
            f"### {_title(name, settings)}: {text}\n\n"
            + _advantages(curves(compressed, text), dense, text, name)
            for text in texts
            for name in names
            if any(row.contender == name for row in compressed)
        ),
    ]
    parts += [_targets(curves(compressed, HELD_OUT), dense, settings["default"]), METHOD]
    return "\n".join(part.rstrip("\n") + "\n" for part in parts if part)


def curves(rows: Iterable[Row], text: str) -> dict[str, dict[float, Point]]:
    """The measured points of each contender on a text."""
    found: dict[str, dict[float, Point]] = {}
    for row in rows:
        found.setdefault(row.contender, {})[row.keep] = Point(row.kept, row.perplexity[text])
    return found


def uniform_peers(
    found: Curves, methods: Sequence[str] = PEERS
) -> dict[str, Mapping[float, Point]]:
    """The peers with uniform allocation, stored as by their authors."""
    names = {method: Contender(method, "uniform", Storage.FACTORS).name for method in methods}
    return {method: found[name] for method, name in names.items() if name in found}


def advantages(
    found: Curves, dense: Row, text: str, ours: str, peer: Mapping[float, Point]
) -> dict[float, Advantage]:
    """The advantages of one of our methods over a peer, by the peer's keeps."""
    curve = [Point(1.0, dense.perplexity[text]), *found[ours].values()]
    return {keep: advantage(curve, point) for keep, point in peer.items()}


def _title(ours: str, settings: Mapping[str, Any]) -> str:
    return f"{ours} (the default)" if ours == settings["default"] else ours


def _settings(settings: Mapping[str, Any]) -> str:
    described = {name: value for name, value in settings.items() if name != "machine"}
    described["machine"] = ", ".join(f"{k} {v}" for k, v in settings["machine"].items())
    described["command"] = f"`{settings['command']}`"
    return _table(["", ""], ([name, str(value)] for name, value in described.items()))


def _perplexities(dense: Row, rows: Sequence[Row], text: str) -> str:
    found = curves(rows, text)
    keeps = _keeps(found)

    def lines() -> Iterator[list[str]]:
        for name, points in found.items():
            cells = (points.get(keep) for keep in keeps)
            yield [name, *("" if cell is None else _number(cell.perplexity) for cell in cells)]

    heading = f"The dense model has {_number(dense.perplexity[text])}.\n\n"
    return heading + _table(["method, ranks, storage", *map(_keep, keeps)], lines())


def _advantages(found: Curves, dense: Row, text: str, ours: str) -> str:
    keeps = _keeps(found)
    peers = {
        name: points
        for name, points in found.items()
        if name.startswith(tuple(f"{peer}, " for peer in PEERS))
        and name.endswith(Storage.FACTORS.value)
    }
    strongest = best(uniform_peers(found))

    def line(name: str, peer: Mapping[float, Point]) -> list[str]:
        by_keep = advantages(found, dense, text, ours, peer)
        return [name, *(str(by_keep.get(keep, "")) for keep in keeps)]

    lines = [line(name, points) for name, points in peers.items()]
    if strongest:
        names = [strongest[keep][0] if keep in strongest else "" for keep in keeps]
        lines.append(["which is the best uniform peer", *names])
        points = {keep: point for keep, (_, point) in strongest.items()}
        lines.append(line("**over the best uniform peer**", points))
    return _table(["over", *(f"at its {_keep(keep)}" for keep in keeps)], lines)


def _targets(found: Curves, dense: Row, default: str) -> str:
    """The targets, and whether they are reached."""
    lines = [
        *_advantage_targets(found, dense, IMPACT_GLOBAL, IMPACT_ADVANTAGE),
        *_advantage_targets(found, dense, default, DEFAULT_ADVANTAGE),
        *_ratio_targets(found, dense, default),
    ]
    if not lines:
        return ""
    return (
        "## Targets\n\n"
        f"IMPACT's authors report up to {IMPACT_ADVANTAGE:.1%} greater size reduction than the\n"
        "best of SVD, FWSVD and AFM at equal accuracy, on tasks and 7B models. Here perplexity on\n"
        "the held-out text stands for accuracy, and the peers are all of the above. Each\n"
        "advantage is over the best uniform peer. *Not seen* means that ours is better at every\n"
        "size measured, the smallest included.\n\n"
        + _table(["ours", "what", "target", "measured", "reached"], lines)
    )


def _advantage_targets(
    found: Curves, dense: Row, ours: str, target: float
) -> Iterator[tuple[str, ...]]:
    strongest = best(uniform_peers(found))
    if ours not in found:
        return
    points = {keep: point for keep, (_, point) in strongest.items()}
    for keep, reached in advantages(found, dense, HELD_OUT, ours, points).items():
        what = f"size advantage over {strongest[keep][0]} at its {_keep(keep)}"
        yield ours, what, f"{target:+.1%}", str(reached), _met(reached, target)


def _met(reached: Advantage, target: float) -> str:
    if reached.value is None:
        return "no"
    if reached.value >= target:
        return "yes"
    return "not seen" if reached.beyond else "no"


def _ratio_targets(found: Curves, dense: Row, default: str) -> Iterator[tuple[str, ...]]:
    points = found.get(default, {})
    for keep, target in DEFAULT_RATIOS.items():
        if keep in points:
            ratio = points[keep].perplexity / dense.perplexity[HELD_OUT]
            what = f"held-out perplexity over the dense model's, keep {_keep(keep)}"
            reached = "yes" if ratio <= target else "no"
            yield default, what, f"at most {target:.2f}", f"{ratio:.2f}", reached


def _keeps(found: Curves) -> list[float]:
    return sorted({keep for points in found.values() for keep in points}, reverse=True)


def _keep(keep: float) -> str:
    return f"{keep:g}"


def _number(perplexity: float) -> str:
    if not math.isfinite(perplexity):
        return "infinite"
    return f"{perplexity:.2f}" if perplexity < 1000 else f"{perplexity:.1e}"


def _table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in headings[1:])]
    return "".join(f"| {' | '.join(line)} |\n" for line in (headings, rule, *lines))

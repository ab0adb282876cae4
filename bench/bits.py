"""Measures what fewer bits cost in perplexity: rounding, GPTQ, low rank with int8, and ours.

    python -m bench.bits    (or `make bench-bits`, which installs llm-compressor to compare with)

One calibration serves all. The demo's weights lie on the grid of its GGUF file, so they are first
moved off it by uniform noise of up to half a step: otherwise every quantiser would find that grid
again. Bytes are those of the compressible layers as an artifact stores them, as a share of 16 bits
per parameter. The table of the results is written into docs/bits.md.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers.utils import logging as transformers_logging

from bench import material
from bench.measuring import machine
from bench.peers import PYTHON, PeerRun, peer_runs
from bench.quality import read_texts
from bench.quality_models import Texts
from service.domain.spec.targets import WIDTHS
from workers.compression.allocation import allocate_uniform
from workers.compression.candidates import BYTES_OF_16_BITS, LayerCandidates, Storage, Width
from workers.compression.metrics import METHODS
from workers.compression.rounding.allocation import ByteBudget
from workers.compression.rounding.feedback import Metric, round_with_feedback
from workers.compression.rounding.grid import RoundedWeight, best_scales, nearest, stored_bytes
from workers.compression.rounding.group import damped, round_group
from workers.compression.shapes import InputGroup, LinearLayer
from workers.compression.solve import solve_group
from workers.compression.statistics import GroupStatistics, Observation
from workers.evaluation.losses import TextLoss
from workers.evaluation.text import text_loss
from workers.model.tokenizer import load_tokenizer
from workers.text.sequences import in_batches

BATCH = 8
BLOCK = 32
"""The weights of a GGUF block: they share a step."""

SCALES = torch.bfloat16
UNIFORM = [Width(8), Width(4), Width(3), Width(2)]
"""The widths of the quantisers that give every layer the same."""

FRACTIONS = (0.52, 0.375, 0.28, 0.25, 0.203, 0.18)
LEAST_FOR_VLLM = 0.27
"""A little more than int4 everywhere, which is the least that vLLM's widths allow."""

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Row:
    """One compressed model: its size, and nats per token over the dense one by text."""

    name: str
    fraction: float
    predicted: float | None
    increase: Mapping[str, tuple[float, float]]  # with the paired standard error
    perplexity: Mapping[str, float]


def main() -> int:
    given = _parser().parse_args()
    console, device = Console(), material.device()
    transformers_logging.disable_progress_bar()
    folder = material.model_folder(None, material.STATE)
    model = material.load(folder, device)
    groups = material.groups_of(model)
    move_off_the_grid(model, groups)
    tokenizer = load_tokenizer(folder)
    texts = read_texts(given, tokenizer)
    peers: dict[str, PeerRun] = {}
    if given.peer_python is None:
        console.print("llm-compressor is left out: `make bench-bits` installs it")
    else:
        console.print(f"llm-compressor rounds in {given.peer_python} ...")
        layers = [layer for group in groups for layer in group.layers]
        peers = peer_runs(given.peer_python, model, tokenizer, layers, texts.calibration)
    bench = Bench(model, groups, texts, peers)
    dense = bench.losses()
    console.print(f"dense: {_shown({name: each.perplexity for name, each in dense.items()})}")
    rows = []
    for row in bench.rows(dense):
        rows.append(row)
        console.print(f"{row.name} at {row.fraction:.1%}: {_shown(row.perplexity)}")
    perplexity = {name: each.perplexity for name, each in dense.items()}
    given.out.mkdir(parents=True, exist_ok=True)
    text = page(rows, perplexity, peers, given, machine(device))
    (given.out / "bits.md").write_text(text, "utf-8")
    (material.STATE / "bits.json").write_text(json.dumps([vars(row) for row in rows]))
    return 0


def move_off_the_grid(model: Any, groups: Collection[InputGroup]) -> None:
    """Add uniform noise of up to half a step to every weight of the layers."""
    generator = torch.Generator().manual_seed(material.SEED)
    for layer in (layer for group in groups for layer in group.layers):
        weight = model.get_submodule(layer.name).weight.data
        blocks = weight.cpu().reshape(-1, BLOCK)
        gaps = blocks.sort(1).values.diff(dim=1)
        step = gaps.masked_fill(gaps <= gaps.amax(1, keepdim=True) * 1e-3, math.inf).amin(1)
        step = step.masked_fill(step.isinf(), 0)
        noise = torch.rand(blocks.shape, generator=generator) - 0.5
        weight.add_((noise * step[:, None]).reshape(weight.shape).to(weight))


class Bench:
    """A model, its statistics and roundings, and the texts that it is measured on."""

    def __init__(
        self,
        model: Any,
        groups: tuple[InputGroup, ...],
        texts: Texts,
        peers: Mapping[str, PeerRun],
    ) -> None:
        self._model = model
        self._groups = groups
        self._texts = texts.measured
        self._peers = peers
        self._layers = {layer.name: layer for group in groups for layer in group.layers}
        self._weights = {
            name: model.get_submodule(name).weight.detach().clone() for name in self._layers
        }
        device = next(model.parameters()).device
        self._statistics = material.calibrated(
            model,
            groups,
            material.batches(texts.calibration, BATCH, device),
            METHODS["impact-kron"].observations | {Observation.BOTH_SIDES},
        )

    def losses(self) -> dict[str, TextLoss]:
        """The losses of the model in its current state, by text."""
        return {
            name: TextLoss.total(
                text_loss(self._model, batch) for batch in in_batches(sequences, BATCH)
            )
            for name, sequences in self._texts.items()
        }

    def rows(self, dense: Mapping[str, TextLoss]) -> Iterator[Row]:
        """All contenders at all sizes."""
        for width in UNIFORM:
            name = f"round to nearest, {width.bits} bit"
            yield self._row(name, dense, *self._nearest(width))
        for width in UNIFORM:
            yield self._row(f"GPTQ, {width.bits} bit", dense, *self._one_sided(width))
        for name, run in self._peers.items():
            weights = {layer: rounded.dequantized() for layer, rounded in run.layers.items()}
            yield self._row(name, dense, weights, self._bytes_at(run.width))
        for keep in (0.72, 0.54, 0.48):
            name = f"svd-llm uniform, int8 factors, keep {keep:g}"
            yield self._row(name, dense, *self._low_rank(keep))
        ours = Ours(self._groups, self._weights, self._statistics)
        for bits in (8, 4, 3):
            name = f"two-sided, {bits} bit"
            yield self._row(name, dense, *ours.uniform(Width(bits)))
        for fraction in (each for each in FRACTIONS if each > LEAST_FOR_VLLM):
            name = f"**bits per layer, vLLM's widths, {fraction:.1%}**"
            yield self._row(name, dense, *ours.allocated(fraction, "vllm"))
        for fraction in FRACTIONS:
            name = f"**bits per layer, all widths, {fraction:.1%}**"
            yield self._row(name, dense, *ours.allocated(fraction, "transformers"))

    def _row(
        self,
        name: str,
        dense: Mapping[str, TextLoss],
        weights: Weights,
        nbytes: int,
        predicted: float | None = None,
    ) -> Row:
        with replaced(self._model, weights):
            measured = self.losses()
        increase = {}
        for text, loss in measured.items():
            ratio = loss.perplexity_ratio(dense[text])
            error = (ratio.standard_error or 0.0) / ratio.value
            increase[text] = math.log(ratio.value), error
        parameters = sum(layer.parameters for layer in self._layers.values())
        return Row(
            name,
            nbytes / (BYTES_OF_16_BITS * parameters),
            predicted,
            increase,
            {text: loss.perplexity for text, loss in measured.items()},
        )

    def _nearest(self, width: Width) -> tuple[Weights, int]:
        def rounded(layer: LinearLayer, weight: Tensor) -> Tensor:
            everything = weight.new_ones(layer.in_features)
            scales = best_scales(weight, everything, width, SCALES)
            return nearest(weight, scales, width).dequantized()

        return self._each(rounded), self._bytes_at(width)

    @cached_property
    def _gptq(self) -> dict[str, dict[Width, RoundedWeight]]:
        """GPTQ: feedback along the inputs alone, by the same second moments and scales."""
        found = {}
        for group in self._groups:
            inputs = self._statistics[group.name].inputs
            assert inputs is not None
            metric = Metric.of(damped(inputs.second_moment()))
            for layer in group.layers:
                weight = self._weights[layer.name]
                scales = [
                    best_scales(weight, metric.importance, width, SCALES) for width in UNIFORM
                ]
                outputs = Metric.identity(layer.out_features, weight.device)
                rounded = round_with_feedback(weight, scales, UNIFORM, outputs, metric)
                found[layer.name] = {each.width: each for each in rounded}
        return found

    def _one_sided(self, width: Width) -> tuple[Weights, int]:
        weights = {name: each[width].dequantized() for name, each in self._gptq.items()}
        return weights, self._bytes_at(width)

    def _low_rank(self, keep: float) -> tuple[Weights, int]:
        """Uniform ranks by SVD-LLM's whitening, with both factors in int8."""
        width, weights, nbytes = Width(8), {}, 0
        for group in self._groups:
            own = {layer.name: self._weights[layer.name] for layer in group.layers}
            solved = solve_group(group, own, self._statistics[group.name], METHODS["svd-llm"])
            options = [each.options(Storage.FACTORS) for each in solved.values()]
            budget = math.floor(keep * sum(each.dense_cost for each in options))
            for name, rank in allocate_uniform(options, budget).items():
                assert rank is not None
                factors = solved[name].truncate(rank, own[name], None)
                down, up = (
                    nearest(
                        each, best_scales(each, each.new_ones(each.shape[1]), width, SCALES), width
                    )
                    for each in (factors.down, factors.up)
                )
                weights[name] = up.dequantized() @ down.dequantized()
                out, into = own[name].shape
                nbytes += stored_bytes(LinearLayer("", rank, into, False), width, SCALES.itemsize)
                nbytes += stored_bytes(LinearLayer("", out, rank, False), width, SCALES.itemsize)
        return weights, nbytes

    def _each(self, rounded: Callable[[LinearLayer, Tensor], Tensor]) -> Weights:
        return {name: rounded(layer, self._weights[name]) for name, layer in self._layers.items()}

    def _bytes_at(self, width: Width) -> int:
        layers = self._layers.values()
        return sum(stored_bytes(layer, width, SCALES.itemsize) for layer in layers)


class Ours:
    """Two-sided roundings of every layer at every width, and the allocation among them."""

    def __init__(
        self,
        groups: Collection[InputGroup],
        weights: Weights,
        statistics: Mapping[str, GroupStatistics],
    ) -> None:
        self._units = [[layer.name for layer in group.layers] for group in groups]
        self._weights = weights
        self._priced = {}
        self._options = []
        widths = [Width(bits) for bits in WIDTHS["transformers"]]
        for group in groups:
            found = round_group(group, weights, statistics[group.name], widths, SCALES)
            for layer in group.layers:
                priced = found[layer.name]
                self._priced[layer.name] = {each.weight.width: each for each in priced}
                rounded = tuple(each.candidate(layer) for each in priced)
                self._options.append(_candidates(layer, rounded))

    def uniform(self, width: Width) -> tuple[Weights, int, float]:
        return self._made({layer.name: width for layer in self._options})

    def allocated(self, fraction: float, precisions: Any) -> tuple[Weights, int, float]:
        units = self._units if precisions == "vllm" else [[each.name] for each in self._options]
        widths = [Width(bits) for bits in WIDTHS[precisions]]
        parameters = sum(layer.dense_cost for layer in self._options)
        budget = math.floor(fraction * BYTES_OF_16_BITS * parameters)
        return self._made(ByteBudget(self._options, units, widths).allocate(budget))

    def _made(self, forms: Mapping[str, Width | None]) -> tuple[Weights, int, float]:
        weights = {
            name: self._priced[name][width].weight.dequantized()
            for name, width in forms.items()
            if width is not None
        }
        nbytes = sum(layer.nbytes(forms[layer.name]) for layer in self._options)
        return weights, nbytes, sum(layer.error(forms[layer.name]) for layer in self._options) / 2


def _candidates(layer: LinearLayer, rounded: Any) -> LayerCandidates:
    nbytes = layer.parameters * BYTES_OF_16_BITS
    return LayerCandidates(
        layer.name,
        torch.zeros(1),
        0,
        dense_cost=layer.parameters,
        sides=layer.out_features + layer.in_features,
        fixed_cost=0,
        dense_bytes=nbytes,
        rounded=rounded,
    )


@contextmanager
def replaced(model: Any, weights: Weights) -> Iterator[None]:
    """Give layers other weights inside the context; their own are put back afterwards."""
    originals = {name: model.get_submodule(name).weight.data for name in weights}
    for name, weight in weights.items():
        model.get_submodule(name).weight.data = weight.to(originals[name])
    try:
        yield
    finally:
        for name, weight in originals.items():
            model.get_submodule(name).weight.data = weight


def page(
    rows: list[Row],
    dense: Mapping[str, float],
    peers: Mapping[str, PeerRun],
    given: Any,
    computer: Mapping[str, str],
) -> str:
    """The results in Markdown."""
    texts = list(dense)
    head = ["bytes", "approach", *(f"{text}: perplexity | ΔL" for text in texts), "predicted ΔL"]
    lines = [f"| {' | '.join(head)} |", "|---" * (3 + 2 * len(texts)) + "|"]
    for row in sorted(rows, key=lambda row: -row.fraction):
        cells = [f"{row.fraction:.1%}", row.name]
        for text in texts:
            value, error = row.increase[text]
            cells += [f"{row.perplexity[text]:.2f}", f"{value:.3f} ± {error:.3f}"]
        cells.append("" if row.predicted is None else f"{row.predicted:.3f}")
        lines.append(f"| {' | '.join(cells)} |")
    return _PAGE.format(
        model=material.MODEL_NAME,
        dense=", ".join(f"{value:.2f} on {text}" for text, value in dense.items()),
        calibration=f"{given.sequences} sequences of {given.length} tokens",
        measured=f"{given.held_out} held-out sequences and {given.problems} HumanEval problems",
        machine=f"{computer['device']}, {computer['cores']} cores, torch {computer['torch']}",
        rows="\n".join(lines),
        correlations=", ".join(f"{rank_correlation(rows, text):.3f} on {text}" for text in texts),
        peers=_about_peers(peers),
    )


def rank_correlation(rows: Collection[Row], text: str) -> float:
    """Spearman's correlation of the predicted with the measured losses of rows that have both."""
    pairs = [(row.predicted, row.increase[text][0]) for row in rows if row.predicted is not None]
    places = torch.tensor(pairs, dtype=torch.float64).argsort(0).argsort(0)
    return float(torch.corrcoef(places.T.double())[0, 1])


def _about_peers(peers: Mapping[str, PeerRun]) -> str:
    if not peers:
        return _NO_PEERS
    default, *_ = (run.settings for run in peers.values())
    return _PEERS.format(**default)


_PAGE = """# Bits per layer

Written by `python -m bench.bits` on {machine}. The model is {model},
moved off the grid of its GGUF file by uniform noise of up to half a step. Its perplexity is then
{dense}.
Calibrated on {calibration} of standard-library source,
measured on {measured}, in float32.

Bytes are those of the blocks' linear layers as stored, scales included (groups of 64, bfloat16), as
a share of 16 bits per parameter. ΔL is in nats per token over the dense model, ± its paired
standard error. The prediction is half the sum of tr(G E S Eᵀ); the rank correlation of predicted
with measured ΔL is {correlations}. Embeddings stay in 16 bits.

{rows}

*GPTQ* here is our rounding without the left metric: feedback along the inputs, in order of
importance, with the same scales. *svd-llm* is its whitening with uniform ranks and both factors
rounded to int8. *vLLM's widths* are 4 and 8 bits and dense, one choice for q, k and v and one for
gate and up. *All widths* are 2, 3, 4, 5, 6 and 8 bits and dense, for each layer.

{peers}
"""

_PEERS = """\
*llm-compressor GPTQ* is that of the library, version {version}, run in an environment of its
own on the same model and the same calibration sequences: `oneshot` with `GPTQModifier`, symmetric,
groups of 64, and otherwise its defaults (`actorder` {actorder}, `block_size` {block_size},
`dampening_frac` {dampening_frac}, observer `{observer}`). It rounds block after block, each by its
inputs in the model rounded so far; all other rows see the inputs of the dense model. With *mse
scales* its observer is `memoryless_mse`, which clips the largest weights of a group where that
lowers the error. Its scales are float32 here and are counted as bfloat16."""

_NO_PEERS = "llm-compressor, whose GPTQ `make bench-bits` adds, was not installed for this run."


def _shown(perplexity: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in perplexity.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sequences", type=int, default=96, help="sequences to calibrate on")
    parser.add_argument("--length", type=int, default=256, help="most tokens in a sequence")
    parser.add_argument("--held-out", type=int, default=24, help="sequences to measure on")
    parser.add_argument("--problems", type=int, default=48, help="HumanEval problems to measure on")
    parser.add_argument(
        "--peer-python",
        type=_program,
        default=PYTHON if PYTHON.exists() else None,
        help="interpreter of an environment with llm-compressor, by default that of .venv-peers",
    )
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the page")
    return parser


def _program(text: str) -> Path:
    if not Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text}")
    return Path(text)


if __name__ == "__main__":
    sys.exit(main())

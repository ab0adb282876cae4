"""Measures how fast artifacts decode and read prompts, beside the dense model in the same engine.

    make demo && make bench-serving

Every model is loaded in a process of its own, in bfloat16, and all are timed in turn, several
times. A ratio is that of the medians; above 1 the artifact is faster than the dense model. Two
sets of models are measured: the demo's, and models of random weights in the shapes of Llama-2-7B,
`--blocks` deep, in which every layer keeps the same share of its parameters. With `--out docs` the
tables become docs/speed.md.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from bench import material
from bench.measuring import machine
from bench.speed_steps import save_random_model
from workers.artifact.checkpoint_writer import write_checkpoint
from workers.compression.interpolation import Interpolation
from workers.compression.layers import compressible_layers
from workers.compression.shapes import LinearLayer
from workers.compression.solve import TILE

ROOT = Path(__file__).parents[1]
PROGRAM = Path(__file__).with_name("serving_engine.py")
INTERPRETERS = {
    "transformers": Path(sys.executable),
    "vllm": ROOT / ".venv-serving" / "bin" / "python",
}
DENSE = "dense"
MULTIPLIED_OUT = "multiplied out"
"""Integers that became plain layers after loading; see docs/serving.md."""
SHORT = 16
"""Tokens of the prompt before decoding."""
KEEPS = (0.8, 0.6)
"""The shares of their parameters that layers of random weights keep."""


@dataclass(frozen=True)
class Load:
    """What is asked of a model."""

    prompt: int  # tokens to read at once
    decoded: int  # tokens to write one by one


@dataclass(frozen=True)
class Speed:
    """Tokens per second, of each repetition."""

    decode: tuple[float, ...]
    prefill: tuple[float, ...]


class Served:
    """A model in an engine. Raises RuntimeError if the engine cannot load it."""

    def __init__(self, engine: str, folder: Path, log: Path) -> None:
        interpreter = INTERPRETERS[engine.partition(",")[0]]
        command: list[str | Path] = [interpreter, "-I", PROGRAM, engine, folder.resolve()]
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True
            )
        self._log = log
        self._answer()

    def seconds(self, prompt: int, generated: int) -> float:
        """The time to read a prompt of so many tokens and to write so many more."""
        assert self._process.stdin is not None
        request = {"prompt": [1 + token % 1000 for token in range(prompt)], "generate": generated}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        answer = json.loads(self._process.stdout.readline() or '{"error": "it has ended"}')
        if isinstance(answer, dict):
            raise RuntimeError(f"{answer['error']}\n{self._log.read_text()[-4000:]}")
        return answer

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def measure(models: Mapping[str, Served], load: Load, repetitions: int) -> dict[str, Speed]:
    """The speed of every model. The models take turns, so that all see the same machine."""
    decode: dict[str, list[float]] = {name: [] for name in models}
    prefill: dict[str, list[float]] = {name: [] for name in models}
    for model in models.values():  # the first time is slower
        model.seconds(load.prompt, 1)
    for _ in range(repetitions):
        for name, model in models.items():
            first = model.seconds(SHORT, 1)
            decode[name].append(load.decoded / (model.seconds(SHORT, 1 + load.decoded) - first))
            prefill[name].append(load.prompt / model.seconds(load.prompt, 1))
    return {name: Speed(tuple(decode[name]), tuple(prefill[name])) for name in models}


def main() -> int:
    arguments = _parser().parse_args()
    for engine in arguments.engines:
        if not INTERPRETERS[engine].exists():
            raise SystemExit(f"There is no {INTERPRETERS[engine]}: run `make bench-serving`.")
    console = Console()
    transformers_logging.disable_progress_bar()
    load = Load(arguments.prompt, arguments.decoded)
    results: dict[str, dict[str, dict[str, Speed]]] = {}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        models = {"SmolLM2-135M-Instruct": demo_models(scratch / "demo", arguments.artifacts)}
        if arguments.blocks:
            subject = f"{arguments.blocks} blocks in the shapes of Llama-2-7B, random weights"
            models[subject] = random_models(scratch / "random", arguments.blocks)
        for subject, folders in models.items():
            results[subject] = {}
            for engine in arguments.engines:
                with serving(engine, folders, scratch, console) as served:
                    results[subject][engine] = measure(served, load, arguments.repetitions)
                console.print(table(f"{subject}, {engine}", results[subject][engine]))
    if arguments.out:
        text = page(results, load, arguments.repetitions, machine(torch.device("cpu")))
        (arguments.out / "speed.md").write_text(text, "utf-8")
    return 0


def demo_models(scratch: Path, artifacts: Path) -> dict[str, Path]:
    """The demo's dense model in bfloat16, and its artifacts."""
    source, dense = material.model_folder(None, material.STATE), scratch / DENSE
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(dense)
    found = sorted(path.parent for path in artifacts.glob("*/config.json"))
    if not found:
        raise SystemExit(f"There are no artifacts in {artifacts}: run `make demo` first.")
    return {DENSE: dense} | {folder.name: folder for folder in found}


def random_models(scratch: Path, blocks: int) -> dict[str, Path]:
    """Models in the shapes of Llama-2-7B: dense, and with all layers of low rank."""
    dense = save_random_model(scratch / DENSE, blocks, torch.bfloat16)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(dense))
    layers = {layer.name: layer for layer in compressible_layers(empty)}
    folders = {DENSE: dense}
    for keep in KEEPS:
        ranks = {name: rank_that_keeps(layer, keep) for name, layer in layers.items()}
        made = {name: random_layer(layer, ranks[name]) for name, layer in layers.items()}
        folder = folders[f"keep-{keep:g}"] = scratch / f"keep-{keep:g}"
        write_checkpoint(dense, folder, ranks, partial(map, made.__getitem__), torch.bfloat16)
    return folders


def rank_that_keeps(layer: LinearLayer, keep: float) -> int:
    """The rank at which the layer has this share of its parameters, as a multiple of 8."""
    sides = layer.out_features + layer.in_features
    return int(sides - math.sqrt(sides**2 - 4 * keep * layer.parameters)) // 2 // TILE * TILE


def random_layer(layer: LinearLayer, rank: int) -> Interpolation:
    """A layer of this rank whose outputs are about as large as its inputs."""
    out, inputs = layer.out_features, layer.in_features
    return Interpolation(
        torch.randn(rank, inputs) / inputs**0.5,
        torch.randn(out - rank, rank) / rank**0.5,
        torch.randperm(out, dtype=torch.int32),
        torch.zeros(out),
    )


@contextmanager
def serving(
    engine: str, folders: Mapping[str, Path], scratch: Path, console: Console
) -> Iterator[dict[str, Served]]:
    """Every model that the engine can load, loaded; what it cannot load is printed."""
    with ExitStack() as stack:
        models = {}
        for name, folder, way in ways(engine, folders):
            try:
                model = Served(way, folder, scratch / f"{engine}-{name}.log")
            except RuntimeError as error:
                console.print(f"{engine} does not load {name}: {error}", markup=False)
                continue
            stack.callback(model.stop)
            models[name] = model
        yield models


def ways(engine: str, folders: Mapping[str, Path]) -> Iterator[tuple[str, Path, str]]:
    """Each model's name, folder and engine; transformers runs integers in a second way, too."""
    for name, folder in folders.items():
        yield name, folder, engine
        config = json.loads((folder / "config.json").read_text("utf-8"))
        if engine == "transformers" and "quantization_config" in config:
            yield f"{name}, {MULTIPLIED_OUT}", folder, f"{engine}, {MULTIPLIED_OUT}"


HEADINGS = ("decoding", "prefill")


def rows(speeds: Mapping[str, Speed]) -> list[tuple[str, ...]]:
    """For every model the tokens per second and their ratio to the dense model's, as text."""
    dense = speeds[DENSE]
    return [
        (
            name,
            *(
                cell
                for own, others in ((speed.decode, dense.decode), (speed.prefill, dense.prefill))
                for cell in (f"{median(own):,.0f}", f"{median(own) / median(others):.2f}")
            ),
        )
        for name, speed in speeds.items()
    ]


def table(engine: str, speeds: Mapping[str, Speed]) -> Table:
    shown = Table("model", title=engine)
    for heading in HEADINGS:
        shown.add_column(f"{heading}, tokens/s", justify="right")
        shown.add_column("of dense", justify="right")
    for row in rows(speeds):
        shown.add_row(*row)
    return shown


def page(
    results: Mapping[str, Mapping[str, Mapping[str, Speed]]],
    load: Load,
    repetitions: int,
    computer: Mapping[str, str],
) -> str:
    """The results, by subject and engine, in Markdown."""
    lines = []
    for subject, engines in results.items():
        lines += [f"## {subject}", ""]
        for engine, speeds in engines.items():
            head = [engine, *(f"{heading}, tokens/s | of dense" for heading in HEADINGS)]
            lines += [f"| {' | '.join(head)} |", "|---" + "|--:" * 4 + "|"]
            lines += [f"| {' | '.join(row)} |" for row in rows(speeds)] + [""]
    return _PAGE.format(
        load=load,
        short=SHORT,
        repetitions=repetitions,
        machine=f"{computer['device']}, {computer['cores']} cores, torch {computer['torch']}",
        tables="\n".join(lines).rstrip(),
    )


_PAGE = """# Speed of artifacts

Written by `python -m bench.serving` on {machine}.
All models are in bfloat16, each in a process of its own. They are timed in turn, {repetitions}
times; figures are medians. *Decoding*: one sequence, {load.decoded} tokens after a prompt of
{short}, whose time is taken off. *Prefill*: a prompt of {load.prompt} tokens, and one token more.
vLLM runs with `--enforce-eager`, transformers as it is.

{tables}
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "artifacts", type=Path, nargs="?", default=Path("demo-output"), help="folder of artifacts"
    )
    parser.add_argument(
        "--engines", nargs="+", choices=list(INTERPRETERS), default=list(INTERPRETERS)
    )
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the long prompt")
    parser.add_argument("--decoded", type=int, default=32, help="tokens to decode")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=2, help="of the large models; 0: none")
    parser.add_argument("--out", type=Path, help="folder for the page, such as docs")
    return parser


if __name__ == "__main__":
    sys.exit(main())

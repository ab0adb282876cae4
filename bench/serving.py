"""Measures how fast artifacts decode and read prompts, beside the dense model in the same engine.

    make demo && make bench-serving

Every model is loaded in a process of its own, in bfloat16, and all are timed in turn, several
times. A ratio is that of the medians; above 1 the artifact is faster than the dense model. The
table is written into docs/speed.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from bench import material
from bench.measuring import machine

ROOT = Path(__file__).parents[1]
PROGRAM = Path(__file__).with_name("serving_engine.py")
INTERPRETERS = {
    "transformers": Path(sys.executable),
    "vllm": ROOT / ".venv-serving" / "bin" / "python",
}
DENSE = "dense"
SHORT = 16
"""Tokens of the prompt before decoding."""


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

    def __init__(self, engine: str, folder: Path, options: Sequence[str], log: Path) -> None:
        command: list[str | Path] = [INTERPRETERS[engine], "-I", PROGRAM, engine]
        command += [folder.resolve(), *options]
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
    console = Console()
    folders = {path.parent.name: path.parent for path in arguments.artifacts.glob("*/config.json")}
    if not folders:
        console.print(f"There are no artifacts in {arguments.artifacts}: run `make demo` first.")
        return 1
    options = ["--compiled"] if arguments.compiled else []
    with tempfile.TemporaryDirectory() as scratch:
        dense = Path(scratch) / DENSE
        source = material.model_folder(arguments.model, material.STATE)
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16).save_pretrained(dense)
        folders = {DENSE: dense, **dict(sorted(folders.items()))}
        load = Load(arguments.prompt, arguments.decoded)
        results = {}
        for engine in arguments.engines:
            with serving(engine, folders, options, Path(scratch), console) as models:
                results[engine] = measure(models, load, arguments.repetitions)
            console.print(table(engine, results[engine]))
    if arguments.out:
        text = page(results, load, arguments.repetitions, machine(torch.device("cpu")))
        (arguments.out / "speed.md").write_text(text, "utf-8")
    return 0


@contextmanager
def serving(
    engine: str,
    folders: Mapping[str, Path],
    options: Sequence[str],
    scratch: Path,
    console: Console,
) -> Iterator[dict[str, Served]]:
    """Every model that the engine can load, loaded; what it cannot load is printed."""
    with ExitStack() as stack:
        models = {}
        for name, folder in folders.items():
            try:
                model = Served(engine, folder, options, scratch / f"{engine}-{name}.log")
            except RuntimeError as error:
                console.print(f"{engine} does not load {name}: {error}", markup=False)
                continue
            stack.callback(model.stop)
            models[name] = model
        yield models


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
    results: Mapping[str, Mapping[str, Speed]],
    load: Load,
    repetitions: int,
    computer: Mapping[str, str],
) -> str:
    """The results in Markdown."""
    lines = []
    for engine, speeds in results.items():
        head = ["model", *(f"{heading}, tokens/s | of dense" for heading in HEADINGS)]
        lines += [f"## {engine}", "", f"| {' | '.join(head)} |", "|---" + "|--:" * 4 + "|"]
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
The models are the demo's: SmolLM2-135M-Instruct and its artifacts, all in bfloat16. Each is loaded
in a process of its own, and all are timed in turn, {repetitions} times; figures are medians.
*Decoding*: one sequence, {load.decoded} tokens after a prompt of {short}, whose time is taken off.
*Prefill*: a prompt of {load.prompt} tokens, and one token more. vLLM runs with `--enforce-eager`.

{tables}
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "artifacts", type=Path, nargs="?", default=Path("demo-output"), help="folder of artifacts"
    )
    parser.add_argument("--model", type=Path, help="the dense model, by default the demo's")
    parser.add_argument(
        "--engines", nargs="+", choices=list(INTERPRETERS), default=list(INTERPRETERS)
    )
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the long prompt")
    parser.add_argument("--decoded", type=int, default=64, help="tokens to decode")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--compiled", action="store_true", help="let vLLM compile (minutes each)")
    parser.add_argument("--out", type=Path, help="folder for the page, such as docs")
    return parser


if __name__ == "__main__":
    sys.exit(main())

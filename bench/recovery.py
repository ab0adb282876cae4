"""What recovery regains, and the time that it takes: a job on the demo's model.

    python -m bench.recovery --out docs

Jobs make SmolLM2 smaller by low rank and by few bits, recover each size, and measure both on
held-out text of the calibration's kind and on HumanEval's problems, of which calibration and
recovery see nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench import demo_data, material
from bench.bits import move_off_the_grid
from bench.demo_server import serving
from bench.measuring import machine
from bench.memory import JobFailed, step_seconds
from service.client.client import Client
from workers.model.tokenizer import load_tokenizer

RANKS = {"targets": [{"keep": keep} for keep in (0.8, 0.6, 0.4)]}
BITS = {
    "dtype": "bfloat16",
    "targets": [
        {"bytes_fraction": each, "precisions": "transformers"} for each in (0.28, 0.25, 0.203)
    ],
}
SEQUENCES, LENGTH, BATCH, EVALUATED, PROBLEMS = 96, 256, 8, 24, 48
HELD_OUT, SECOND = "held-out", "humaneval"
TEXTS = (HELD_OUT, SECOND)


@dataclass(frozen=True)
class Measured:
    """A job's report, and the seconds of its steps."""

    report: dict[str, Any]
    seconds: dict[str, float]


def main() -> int:
    arguments = _parser().parse_args()
    load = os.getloadavg()[0]  # of the work that the machine did before
    computer = machine(torch.device("cpu")) | {"load": f"{load:.1f}"}
    given = {"sequences": arguments.sequences, "epochs": arguments.epochs}
    recovery = {name: value for name, value in given.items() if value is not None}
    in_ranks, in_bits = (
        measured(arguments.scratch, model_in, wanted | {"recovery": recovery})
        for model_in, wanted in ((_as_it_is, RANKS), (_off_the_grid, BITS))
    )
    text = page(in_ranks, in_bits, computer)
    print(text)
    if arguments.out:
        (arguments.out / "recovery.md").write_text(text, "utf-8")
    return 0


def _as_it_is(_: Path) -> Path:
    """The demo's model file."""
    return demo_data.model_file()


def _off_the_grid(scratch: Path) -> Path:
    """A folder with the demo's model, whose weights are no longer integers times scales."""
    source, folder = material.model_folder(None, material.STATE), scratch / "off-the-grid"
    model = material.load(source, torch.device("cpu"))
    move_off_the_grid(model, material.groups_of(model))
    model.save_pretrained(folder)
    load_tokenizer(source).save_pretrained(folder)
    return folder


def measured(
    folder: Path | None, model_in: Callable[[Path], Path], wanted: Mapping[str, Any]
) -> Measured:
    """Run a job in a new folder within that one. Raises JobFailed and ServerFailed."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        job = _measured(Path(scratch), model_in(Path(scratch)), wanted)
    brief = {"targets": _brief(job.report), "seconds": job.seconds}
    print(json.dumps(brief), file=sys.stderr, flush=True)
    return job


def _measured(scratch: Path, model: Path, wanted: Mapping[str, Any]) -> Measured:
    texts, data = scratch / "texts", scratch / "data"
    texts.mkdir()
    data.mkdir()
    library, problems = texts / "library", texts / "problems.jsonl"
    demo_data.copy_standard_library(library)
    demo_data.write_problems(problems, PROBLEMS)
    command = [str(Path(sys.executable).with_name("eigenpress")), "serve"]
    with (
        serving(command, data, [model.parent, texts]) as server,
        Client(server.url, key=server.key) as client,
    ):
        body = {**_specification(model, library, problems), **wanted}
        job = client.wait(client.submit(body)["id"])
        if job["state"] != "succeeded":
            raise JobFailed(f"the job is {job['state']}: {job.get('error')}")
        seconds = {step["step"]: step_seconds(step) or 0.0 for step in job["steps"]}
        return Measured(client.report(job["id"]), seconds)


def _specification(model: Path, library: Path, problems: Path) -> dict[str, Any]:
    return {
        "model": {"source": "local", "path": str(model)},
        "workers": 1,
        "mixed_precision": "auto",
        "calibration": {
            "data": {"source": "local", "path": str(library), "pattern": "**/*.py"},
            "sequences": SEQUENCES,
            "sequence_length": LENGTH,
            "batch_size": BATCH,
        },
        "evaluation": {
            "sequences": EVALUATED,
            "decode_tokens": 0,
            "datasets": [
                {"name": SECOND, "data": {"source": "local", "path": str(problems)}},
            ],
        },
    }


def page(in_ranks: Measured, in_bits: Measured, computer: Mapping[str, str]) -> str:
    """The results in Markdown."""
    report = in_ranks.report
    epochs = report["job"]["specification"]["recovery"].get("epochs", 1)
    (used,) = [usage for usage in report["texts"] if usage["text"] == "recovery text"]
    return _PAGE.format(
        machine=f"{computer['device']}, {computer['cores']} cores, {computer['memory']}",
        load=computer["load"],
        versions=f"Python {computer['python']}, torch {computer['torch']}, Ray {version('ray')}",
        tokens=f"{SEQUENCES} sequences of {LENGTH} tokens",
        sequences=used["sequences"],
        steps=report["targets"][0]["recovery"]["steps"],
        often="once" if epochs == 1 else f"{epochs} times",
        ranks=_perplexities(report),
        times=_times(in_ranks),
        bits=_losses(in_bits.report),
        times_of_bits=_times(in_bits),
    )


def _perplexities(report: Mapping[str, Any]) -> str:
    heads = ("keep", "text", "dense", "as cut", "recovered", "cut ÷ dense", "recovered ÷ dense")
    rows = []
    for target, text, dense, before, after in _measurements(report):
        ratio = f"{after['ratio']:.3f} ± {after['ratio_standard_error']:.3f}"
        perplexities = [f"{each:.2f}" for each in (dense, before, after["perplexity"])]
        rows.append([_size(target), text, *perplexities, f"{before / dense:.3f}", ratio])
    return _table(heads, rows)


def _losses(report: Mapping[str, Any]) -> str:
    heads = ("bytes", "text", "dense", "rounded", "recovered", "ΔL before", "ΔL after", "regained")
    rows = []
    for target, text, dense, before, after in _measurements(report):
        lost, left = math.log(before / dense), math.log(after["ratio"])
        error = after["ratio_standard_error"] / after["ratio"]
        perplexities = [f"{each:.2f}" for each in (dense, before, after["perplexity"])]
        losses = [f"{lost:.3f}", f"{left:.3f} ± {error:.3f}", f"{1 - left / lost:.0%}"]
        rows.append([_size(target), text, *perplexities, *losses])
    return _table(heads, rows)


def _measurements(
    report: Mapping[str, Any],
) -> Iterator[tuple[Mapping[str, Any], str, float, float, Mapping[str, Any]]]:
    """Each target on each text: the perplexities of the dense model, before and after."""
    dense = report["evaluation"]["dense"]["perplexity"]
    for target in report["targets"]:
        for text in TEXTS:
            before = target["recovery"]["perplexity_before"][text]
            yield target, text, dense[text]["perplexity"], before, target["perplexity"][text]


def _times(job: Measured) -> str:
    calibrating = job.seconds["calibrate"] + job.seconds["solve"]
    targets = job.report["targets"]
    shared = job.seconds["recover"] - sum(each["recovery"]["seconds"] for each in targets)
    rows = [["calibrating and solving", f"{calibrating:.0f}", "", "", ""]]
    rows.append(["the dense model's part", f"{shared:.0f}", f"{shared / calibrating:.1f}", "", ""])
    for target in targets:
        each = target["recovery"]
        times = f"{each['seconds']:.0f}", f"{each['seconds'] / calibrating:.1f}"
        divergences = [f"{each[f'divergence_{when}']:.4f}" for when in ("before", "after")]
        rows.append([f"training {_size(target)}", *times, *divergences])
    return _table(("", "seconds", "of the first", "divergence before", "after"), rows)


def _size(target: Mapping[str, Any]) -> str:
    keep = target.get("keep")
    return f"{target['bytes_fraction']:.0%}" if keep is None else f"{keep:g}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _brief(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    wanted = ("name", "perplexity", "recovery")
    return [{name: target[name] for name in wanted} for target in report["targets"]]


_PAGE = """# Recovery

Written by `python -m bench.recovery` on {machine}; {versions}.
The machine's load was {load} before that. Jobs on SmolLM2-135M-Instruct (expanded from the
GGUF file of the demo) calibrate on {tokens} of the standard library's sources with
`impact-kron`. Each target is trained on {sequences} sequences of that text, those of the
calibration first, {often}, but for what is kept aside: {steps} steps of 4 sequences.
Products are in bfloat16.

Perplexity on text of the same kind that nothing was tuned on, and on HumanEval's problems, which
are of another kind. Errors are standard errors of the ratio, by sequences.

## Low rank

{ranks}

The dense model's part is done once for all sizes: its predictions, and the moments of layers'
inputs. Divergences are from the dense model, on the sequences kept aside, in nats per token.

{times}

## Few bits

The model is moved off the grid of its file first, as for [bits.md](bits.md), because its weights
are integers times scales already. Bytes are those of the linear layers, as a share of 16 bits;
widths are those that transformers loads. ΔL is in nats per token over the dense model. That model
has noise in its weights here, and what is trained may end nearer to the text than the dense model
is: ΔL goes down by more than the divergence does, which is the better measure of what is regained.

{bits}

{times_of_bits}
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sequences", type=int, help="to train on; unset: as is usual")
    parser.add_argument("--epochs", type=int, help="unset: as is usual")
    parser.add_argument("--out", type=Path, help="folder for the page")
    parser.add_argument("--scratch", type=Path, help="where to make a folder for everything")
    return parser


if __name__ == "__main__":
    sys.exit(main())

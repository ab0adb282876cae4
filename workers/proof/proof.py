"""Compares artifacts with the models that were compressed, in a process that knows only
transformers.

The compressed model in memory is the reference: the source as it was calibrated, with the solved
layers in it. So a difference shows whatever went wrong on the way to the disk and back: tensors of
another checkpoint, a wrong name, precision or configuration, a tokenizer of another class.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from service.die_with_parent import tied
from service.errors import ArtifactMismatch, OutOfMemory, WorkerLost
from workers.proof.result import Proof

SEQUENCE_TOKENS = 128
POSITIONS = 32
"""Of each sequence the model reads at most so many tokens; the logits at the last of them and at
others, equally far apart, are compared."""

SECONDS_PER_ARTIFACT = 3600
MAX_DIFFERENCES_SHOWN = 5

SECRETS = ("EIGENPRESS_", "AWS_", "RAY_", "HF_")
"""The prefixes of variables that the process has no use for."""

CLEAN_PROCESS = Path(__file__).with_name("clean_process.py")


@dataclass(frozen=True)
class Reference:
    """The logits of the compressed model in memory."""

    tokens: Tensor  # (sequences, length)
    positions: Tensor  # (compared,)
    logits: Tensor  # (sequences, compared, vocabulary), float32

    @classmethod
    def of(
        cls, sequences: Sequence[Sequence[int]], logits_at: Callable[[Tensor, Tensor], Tensor]
    ) -> Reference:
        """What `logits_at` gives for the first tokens of these equally long sequences.

        It maps tokens (sequences, length) and positions to (sequences, positions, vocabulary).
        """
        tokens = torch.tensor([[*each[:SEQUENCE_TOKENS]] for each in sequences])
        length = tokens.shape[1]
        positions = torch.linspace(0, length - 1, min(POSITIONS, length)).round().long()
        return cls(tokens, positions, logits_at(tokens, positions))

    def save(self, path: Path) -> Path:
        save_file(vars(self), path)
        return path


@dataclass(frozen=True)
class Claim:
    """An artifact, and what it should be."""

    name: str
    folder: Path
    reference: Reference


def prove(
    claims: Sequence[Claim],
    source: Path,
    scratch: Path,
    *,
    dtype: str | None,
    carried: Sequence[str],
    memory_bytes: int,
    dense: Reference | None = None,
) -> dict[str, Proof]:
    """Load the artifacts in a process without Eigenpress; returns what it measured, by name.

    `source` is the folder of the source model; `dtype` the precision asked for, None for that of
    the source; `carried` names the tensors that the model does not use. With `dense`, the logits of
    the source model in memory, the source itself is loaded and compared as well. A model of more
    than `memory_bytes` is loaded layer by layer. Raises ArtifactMismatch, which says what differs;
    OutOfMemory; and WorkerLost if the process was killed.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix="proof-") as name:
        folder = Path(name)
        request = {
            "source": str(source),
            "dtype": dtype,
            "carried": [*carried],
            "memory": memory_bytes,
            "reference": None if dense is None else str(dense.save(folder / "dense.safetensors")),
            "artifacts": [
                {
                    "folder": str(claim.folder),
                    "reference": str(claim.reference.save(folder / f"{number}.safetensors")),
                }
                for number, claim in enumerate(claims)
            ],
        }
        found = run_clean_process(request, folder, SECONDS_PER_ARTIFACT * len(claims))
    if isinstance(found, str):
        raise OutOfMemory(f"A worker's machine has no memory left to prove the artifacts: {found}")
    if found["source"]:
        raise ArtifactMismatch(
            "transformers reads another model from the source than was compressed: "
            f"{'; '.join(found['source'])}. Nothing was published."
        )
    return {
        claim.name: _judged(claim.name, each)
        for claim, each in zip(claims, found["artifacts"], strict=True)
    }


def run_clean_process(request: Mapping[str, Any], folder: Path, seconds: float) -> Any:
    """The findings of `workers.proof.clean_process`, which keeps its files in `folder`."""
    (folder / "request.json").write_text(json.dumps(request), "utf-8")
    files = (str(folder / "request.json"), str(folder / "findings.json"))
    try:
        ended = subprocess.run(
            tied([sys.executable, "-I", str(CLEAN_PROCESS), *files]),
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WorkerLost(f"The proof of the artifacts took longer than {seconds:g} s.") from None
    if ended.returncode < 0:
        raise WorkerLost(
            f"The process that proves the artifacts was ended by signal {-ended.returncode}, "
            "probably for lack of memory."
        )
    if ended.returncode:
        raise RuntimeError(f"the proof failed: {ended.stderr.decode(errors='replace')[-2000:]}")
    return json.loads((folder / "findings.json").read_text("utf-8"))


def _environment(folder: Path) -> dict[str, str]:
    """The process keeps transformers' copies of modelling files in `folder`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SECRETS)}
    threads = str(torch.get_num_threads())  # as many round in the same way
    return kept | {"HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": threads}


def _judged(name: str, found: Mapping[str, Any]) -> Proof:
    refuse(name, found["differences"])
    return Proof(found["logit_error"], found["same_predictions"], found["positions"])


def refuse(name: str, differences: Sequence[str]) -> None:
    """Raise ArtifactMismatch if there are any differences."""
    if differences:
        shown = "; ".join(differences[:MAX_DIFFERENCES_SHOWN])
        more = len(differences) - MAX_DIFFERENCES_SHOWN
        raise ArtifactMismatch(
            f"The artifact '{name}' is not the model that was compressed: {shown}"
            f"{f'; and {more} more' if more > 0 else ''}. Nothing was published."
        )

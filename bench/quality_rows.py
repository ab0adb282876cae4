"""The rows of the quality benchmark, and the file that stores them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from workers.compression.candidates import Storage

PEERS = ("svd", "fwsvd", "asvd", "svd-llm", "afm")
OURS = ("impact", "impact-kron")
ALLOCATIONS = ("uniform", "global")
KEEPS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
HELD_OUT, HUMANEVAL = "held-out", "humaneval"


@dataclass(frozen=True)
class Contender:
    """A way to compress: the method, the allocation of ranks, and the stored form."""

    method: str
    allocation: str
    storage: Storage

    @property
    def name(self) -> str:
        return f"{self.method}, {self.allocation}, {self.storage.value}"


@dataclass(frozen=True)
class Row:
    """One compressed model: the fraction of linear parameters it keeps, and its perplexities."""

    contender: str
    keep: float  # the requested fraction
    kept: float  # the actual fraction, with whole ranks
    dense_layers: int  # how many layers stay dense
    perplexity: dict[str, float]  # by text; infinite if the model's arithmetic overflows


def contenders(methods: tuple[str, ...]) -> Iterator[Contender]:
    """Each method in its own stored form, and `impact` and `afm` also in the other one."""
    for method in methods:
        storage = Storage.FACTORS if method in PEERS else Storage.INTERPOLATIVE
        for allocation in ALLOCATIONS:
            yield Contender(method, allocation, storage)
        if method == "impact":
            yield Contender("impact", "global", Storage.FACTORS)
        if method == "afm":
            yield Contender("afm", "global", Storage.INTERPOLATIVE)


class RowFile:
    """The rows measured so far; each is written at once, so that a run can resume.

    Each fingerprint of settings, text, model and code has a file of its own.
    """

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._path = folder / f"quality-{fingerprint[:16]}.json"
        folder.mkdir(parents=True, exist_ok=True)
        found = json.loads(self._path.read_text("utf-8")) if self._path.is_file() else []
        self._rows = {(row["contender"], row["keep"]): Row(**row) for row in found}

    def get(self, contender: str, keep: float) -> Row | None:
        return self._rows.get((contender, keep))

    def add(self, row: Row) -> None:
        self._rows[row.contender, row.keep] = row
        text = json.dumps([asdict(row) for row in self._rows.values()], indent=1)
        part = self._path.with_suffix(".part")
        part.write_text(text + "\n", "utf-8")
        part.replace(self._path)

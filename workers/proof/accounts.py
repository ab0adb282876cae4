"""Accounts for every number of a source model: it is in the artifact, or was named as left out.

This looks at what was read to write an artifact, and not at why: a tensor that was dropped by
mistake is found here, whichever rule dropped it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from service.inputs.models.gguf_header import count_numbers
from workers.model.stored_tensors import StoredTensors
from workers.model.tensor_names import source_tensors


def unaccounted(source: Path, artifacts: Sequence[Path], original: Path) -> Iterator[list[str]]:
    """What is wrong with the numbers of each artifact, as phrases.

    `source` is the folder that the artifacts were written from; `original` is the same, or the GGUF
    file that it was converted from.
    """
    invented = None if original == source else _invented(source, original)
    tensors, stored = source_tensors(source), StoredTensors(source)
    read = [*(key for piece in tensors for key in piece.keys), *tensors.unused.carried]
    named = {*read, *tensors.unused.left_out}
    lost = [key for key in stored if key not in named and not _is_copy(stored, key, read)]
    for artifact in artifacts:
        written = StoredTensors(artifact)
        yield [
            *([invented] if invented else []),
            *(f"it lacks the tensor '{n}'" for n in tensors.unused.carried if n not in written),
            *(f"it lacks the source's tensor '{key}'" for key in lost),
        ]


def _invented(source: Path, gguf: Path) -> str | None:
    """What is wrong if the conversion of a GGUF file has more numbers than the file."""
    converted = StoredTensors(source)
    count = sum(converted.shape(key).numel() for key in converted)
    with gguf.open("rb") as file:
        held = count_numbers(file, gguf.name, "model.path")
    if count <= held:
        return None
    return f"{count - held} of its source's {count} numbers are not in {gguf.name}"


def _is_copy(stored: StoredTensors, key: str, read: Sequence[str]) -> bool:
    """Whether the source has an equal matrix that was read, as of a tied weight stored twice.

    Vectors are never tied, and many are equal: norms of ones, biases of zeros.
    """
    shape = stored.shape(key).shape
    alike = [name for name in read if stored.shape(name).shape == shape]
    return len(shape) > 1 and any(torch.equal(stored.read(key), stored.read(n)) for n in alike)

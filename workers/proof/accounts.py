"""Accounts for every number of a source model: it is in the artifact, or was named as left out.

This looks at what was read to write an artifact, and not at why: a tensor that was dropped by
mistake is found here, whichever rule dropped it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from service.inputs.models.gguf_header import count_numbers
from workers.model.stored_tensors import StoredTensors
from workers.model.tensor_names import source_tensors


def unaccounted(source: Path, artifact: Path, original: Path) -> Iterator[str]:
    """What is wrong with an artifact's numbers, as phrases.

    `source` is the folder that the artifact was written from; `original` is the same, or the GGUF
    file that it was converted from.
    """
    if original != source and (problem := _invented(source, original)):
        yield problem
    tensors, written = source_tensors(source), StoredTensors(artifact)
    for name in tensors.unused.carried:
        if name not in written:
            yield f"it lacks the tensor '{name}'"
    named = {key for piece in tensors for key in piece.keys}
    named |= tensors.unused.carried.keys() | tensors.unused.left_out.keys()
    stored = StoredTensors(source)
    for key in stored:
        if key not in named and not _has_copy(written, stored.read(key)):
            yield f"it lacks the source's tensor '{key}'"


def _invented(source: Path, gguf: Path) -> str | None:
    """What is wrong if the conversion of a GGUF file has more numbers than the file."""
    converted = StoredTensors(source)
    count = sum(converted.shape(key).numel() for key in converted)
    with gguf.open("rb") as file:
        held = count_numbers(file, gguf.name, "model.path")
    if count <= held:
        return None
    return f"{count - held} of its source's {count} numbers are not in {gguf.name}"


def _has_copy(written: StoredTensors, tensor: torch.Tensor) -> bool:
    """Whether the artifact has an equal matrix, as it has of a tied weight that is stored twice.

    Vectors are never tied, and many are equal: norms of ones, biases of zeros.
    """
    alike = (key for key in written if written.shape(key).shape == tensor.shape)
    return tensor.ndim > 1 and any(
        torch.equal(own, tensor.to(own.dtype)) for key in alike for own in [written.read(key)]
    )

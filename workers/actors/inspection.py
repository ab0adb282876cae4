"""Judges a model by its config.json and the headers of its weights, as a worker will judge it.

The API has it done before it accepts a job, see `service.inputs.models.inspection`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import transformers.models.llama.modeling_llama  # noqa: F401 - with all that most models import

from service.domain.spec.job import JobSpec
from workers.actors.failures import named
from workers.artifact.checkpoint_writer import base_classes
from workers.compression.layers import compressible_layers
from workers.compression.unfuse import unfuse
from workers.evaluation.positions import check_positions
from workers.model.loading import vocabulary_size
from workers.model.tensor_names import empty_model, match
from workers.model.tokenizer import load_tokenizer
from workers.text.texts import check_token_id


def inspect(folder: Path, shapes: Mapping[str, Sequence[int]] | None, spec: JobSpec) -> None:
    """Raise what a worker would raise about a model and the lengths that a job asks for.

    `folder` holds config.json; `shapes` has every tensor of the checkpoint, None to leave them out.
    The model is built on the meta device, where it takes no memory. Raises ModelInvalid,
    NotACausalLM, UnsupportedLayer and InvalidParameter.
    """
    with _named():
        _inspect(folder, shapes, spec)


def inspect_tokenizer(folder: Path) -> None:
    """Raise what a worker would raise about a tokenizer, whose files lie beside config.json.

    Raises ModelInvalid also if the vocabulary has ids without embeddings. Added tokens may have
    such ids, as in well-known models; a worker looks whether they are in the job's texts.
    """
    with _named():
        tokenizer = load_tokenizer(folder)
        added = tokenizer.get_added_vocab()
        ids = (number for token, number in tokenizer.get_vocab().items() if token not in added)
        check_token_id(max(ids, default=0), tokenizer, vocabulary_size(folder))


@contextmanager
def _named() -> Iterator[None]:
    try:
        yield
    except (MemoryError, SystemError):
        raise
    except Exception as error:
        raise named(error) from error


def _inspect(folder: Path, shapes: Mapping[str, Sequence[int]] | None, spec: JobSpec) -> None:
    model = empty_model(folder)
    base_classes(json.loads((folder / "config.json").read_text("utf-8")))
    if shapes is not None:
        match(model, {key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    check_positions(spec, model.config)
    unfuse(model)
    compressible_layers(model)

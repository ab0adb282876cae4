"""A source model whose blocks' weights stay on the disk until they are needed.

The model is built on the meta device. What lies outside its blocks (embeddings, norms, the output
head) is loaded at once, a block only while it is held; meanwhile the next one is read. So the
memory for two blocks suffices for a model of any depth.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from service.errors import ModelInvalid
from workers.compression.layers import compressible_layers, input_groups
from workers.compression.rounding.embeddings import vocabulary_matrices
from workers.compression.shapes import InputGroup, VocabularyMatrix
from workers.compression.unfuse import unfuse
from workers.model.allocator import return_free_memory
from workers.model.configuration import load_configuration
from workers.model.loading import stored_dtype
from workers.model.model_errors import naming_model_errors
from workers.model.tensor_names import Piece, empty_model, source_tensors
from workers.sweeps.passage import Passage

PIECES_KEPT = 2
"""How many pieces stay in memory after they were read: an expert's matrices lie in two of them."""

META = torch.device("meta")


def traced_groups(source: Path) -> tuple[InputGroup, ...]:
    """The compressible layers of a source model, grouped by shared input; no weight is read.

    Raises the errors of `workers.compression.layers`, and ModelInvalid if the model cannot compute.
    """
    model = empty_model(source)
    model.set_attn_implementation("eager")  # the only one that computes without values
    unfuse(model)
    with naming_model_errors("the model cannot compute as config.json says"):
        return input_groups(model, compressible_layers(model))


def vocabulary(source: Path) -> tuple[VocabularyMatrix, ...]:
    """The weights of a source model's embedding and output layer; none is read.

    Raises UnsupportedLayer, which names what cannot be rounded.
    """
    return vocabulary_matrices(_without_weights(source, torch.float32))


def _without_weights(source: Path, dtype: torch.dtype) -> Any:
    """The model with its weights on the meta device, and buffers that have their values."""
    with naming_model_errors("the model's class cannot be built from config.json"):
        config = load_configuration(source)
        with init_empty_weights(include_buffers=False):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)


class Without:
    """Gives blocks their weights without those of some layers, in whose places others are."""

    def __init__(self, stored: StoredModel, layers: Iterable[str]) -> None:
        self._stored = stored
        self._layers = frozenset(layers)

    def hold(self, number: int, following: int | None = None) -> AbstractContextManager[nn.Module]:
        """The block, see `StoredModel.hold`."""
        return self._stored.hold(number, following, self._layers)


class StoredModel:
    """See the module. On a CPU it computes in float32, on a GPU in the checkpoint's precision.

    With `rounded` every weight is as if it came from a checkpoint in that precision.

    Raises the errors of `workers.model.tensor_names.source_tensors`, and ModelInvalid, which names
    the tensor, for numbers that are not finite.
    """

    def __init__(
        self, source: Path, device: torch.device, *, rounded: torch.dtype | None = None
    ) -> None:
        self.device = device
        self._rounded = rounded
        self.dtype = torch.float32 if device.type == "cpu" else stored_dtype(source)
        self.model: Any = _without_weights(source, self.dtype)
        self.unfused = unfuse(self.model)
        self.passage = Passage(self.model)
        pieces = tuple(source_tensors(source))
        self._piece_of = {name: piece for piece in pieces for name in piece.names}
        outside, self._inside = self._sorted(pieces)
        self._read_piece = lru_cache(PIECES_KEPT)(Piece.read)
        self._reader = ThreadPoolExecutor(1)
        self._following: tuple[int, Container[str], Future[dict[str, Tensor]]] | None = None
        with naming_model_errors("its weights cannot be read"):
            self._place(self._read(outside))
        self.model.tie_weights()
        for name, buffer in self.model.named_buffers():
            set_module_tensor_to_device(self.model, name, device, value=buffer)

    @contextmanager
    def hold(
        self, number: int, following: int | None = None, without: Container[str] = ()
    ) -> Iterator[nn.Module]:
        """The block with its weights, while the context is open; `following` comes next.

        Of the layers `without` no weight is read, in either.
        """
        with naming_model_errors("its weights cannot be read"):
            tensors = self._taken(number, without)
        if following is not None:
            reading = self._reader.submit(self._read, self._inside[following], without)
            self._following = following, without, reading
        self._place(tensors)
        del tensors
        block = self.passage.blocks[number]
        try:
            yield block
        finally:
            for name, _ in block.named_parameters():
                set_module_tensor_to_device(block, name, META)
            if not without:  # else little was read, and training takes it again at once
                return_free_memory()

    def read(self, names: Sequence[str]) -> dict[str, Tensor]:
        """These tensors, in the precision of the model, on its device."""
        wanted = set(names)
        with naming_model_errors("its weights cannot be read"):
            return {
                name: self._ready(name, tensor).to(self.device)
                for piece in dict.fromkeys(self._piece_of[name] for name in names)
                for name, tensor in self._read_piece(piece).items()
                if name in wanted
            }

    @property
    def bytes_per_token(self) -> int:
        """The bytes of the hidden state of one token."""
        hidden: int = self.model.config.get_text_config().hidden_size
        return hidden * self.dtype.itemsize

    def block_of(self, name: str) -> int:
        """The number of the block that a layer or tensor lies in."""
        return int(name.removeprefix(f"{self.passage.prefix}.").partition(".")[0])

    def _sorted(self, pieces: Iterable[Piece]) -> tuple[list[Piece], list[list[Piece]]]:
        """The pieces outside the blocks, and those of each block."""
        outside: list[Piece] = []
        inside: list[list[Piece]] = [[] for _ in self.passage.blocks]
        for piece in pieces:
            name = piece.names[0]
            is_inside = name.startswith(f"{self.passage.prefix}.")
            (inside[self.block_of(name)] if is_inside else outside).append(piece)
        return outside, inside

    def _taken(self, number: int, without: Container[str]) -> dict[str, Tensor]:
        """The tensors of a block, which may be read already."""
        following, self._following = self._following, None
        if following is not None and following[:2] == (number, without):
            return following[2].result()
        return self._read(self._inside[number], without)

    def _read(self, pieces: Iterable[Piece], without: Container[str] = ()) -> dict[str, Tensor]:
        return {
            name: self._ready(name, tensor)
            for piece in pieces
            if not all(name.rpartition(".")[0] in without for name in piece.names)
            for name, tensor in piece.read().items()
        }

    def _ready(self, name: str, tensor: Tensor) -> Tensor:
        """A copy in the precision of the model. Raises ModelInvalid if it is not finite."""
        if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
            raise ModelInvalid(f"the tensor '{name}' is not finite", param="model")
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        if tensor.is_floating_point() and self._rounded is not None:
            tensor = tensor.to(self._rounded)
        return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)

    def _place(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            set_module_tensor_to_device(self.model, name, self.device, value=tensor)

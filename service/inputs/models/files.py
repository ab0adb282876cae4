"""Checks that files are a causal language model that loads without running anybody's code.

Reads names, JSON and the headers of weight files, never a tensor. transformers may still refuse a
model that passes; it would refuse any that fails.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple

from pydantic import BaseModel, FailFast, Field, ValidationError

from service.errors import ModelConfigMissing, ModelInvalid, NotACausalLM, UnsafeWeights
from service.inputs.models.json_members import TURN, read_members, read_object, read_value
from service.printable import shortened

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
README_NAME = "README.md"
"""The model card, whose metadata go into the cards of artifacts."""
METADATA_KEY = "__metadata__"
ADAPTER_NAME = "adapter_config.json"
CAUSAL_SUFFIXES = ("ForCausalLM", "LMHeadModel")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
TOKENIZER_FILES = (
    # By the names that transformers reads and writes.
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "bpe.codes",
    "tekken.json",
    "normalizer.json",
    "*.model",  # SentencePiece: spiece.model, tokenizer.model, sentencepiece.bpe.model
    "*.spm",
    "*.tiktoken",
)
COMPANIONS = (
    *TOKENIZER_FILES,
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
)
"""The files that go with a model beside its configuration and weights, right in its folder."""
TEMPLATES_FOLDER = "additional_chat_templates"
"""The one folder below a model's: its further chat templates, as transformers saves them."""
GGUF_SUFFIX = ".gguf"
MAX_NAME_BYTES = 255
"""The limit of a file's name; keys of objects may be longer."""

MAX_CONFIG_BYTES = 2**18
"""It is parsed in one piece, while other requests wait."""
MAX_INDEX_BYTES = 32 * 2**20
MAX_HEADER_BYTES = 32 * 2**20
"""The header of a file with a hundred thousand tensors takes half of it."""
MAX_TOKENIZER_BYTES = 64 * 2**20
MAX_TOKENIZER_FILES = 32
"""The limits of a tokenizer that a submission reads; the largest have half as many bytes."""
MAX_TENSORS = 200_000
"""The limit of an index, and of a file; the largest models have about a hundred thousand."""
MAX_DIMENSIONS = 16
MAX_EXTENT = 2**48
"""The limits of a tensor's shape; products of larger numbers take long to compute."""

QUANTISED_DTYPES = ("F8", "F6", "F4")
"""The beginnings of the names of floating-point numbers of 8 bits or fewer."""
DEQUANTISE = "Name the original model, or save a dequantised copy in bfloat16."

_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
"""The size of one element, by dtype; tensors of other dtypes are not checked."""

_Extent = Annotated[int, Field(ge=0, le=MAX_EXTENT)]


_Span = tuple[int, int, str]
"""The first byte of a tensor in its file, the byte after its last one, and its name."""


class _Tensor(BaseModel):
    dtype: str
    shape: Annotated[list[_Extent], Field(max_length=MAX_DIMENSIONS), FailFast()]
    data_offsets: tuple[_Extent, _Extent]


def is_companion(path: str) -> bool:
    """Whether a file, by its path in a model's folder, goes with the model to an artifact."""
    folder, _, name = path.rpartition("/")
    if folder:
        return folder == TEMPLATES_FOLDER and name.endswith(".jinja")
    return any(fnmatchcase(name, pattern) for pattern in COMPANIONS)


def is_tokenizer_file(name: str) -> bool:
    """Whether a file, right in a model's folder, is of its tokenizer."""
    return len(os.fsencode(name)) <= MAX_NAME_BYTES and any(
        fnmatchcase(name, pattern) for pattern in TOKENIZER_FILES
    )


def may_belong(path: str) -> bool:
    """Whether a path is one where transformers looks for a file of the model."""
    return "/" not in path or is_companion(path)


def model_paths(folder: Path) -> Iterator[Path]:
    """Everything in a model's folder that may belong to the model."""
    yield from folder.iterdir()
    yield from (folder / TEMPLATES_FOLDER).glob("*.jinja")


def is_wanted(name: str) -> bool:
    """Whether a file is fetched with the model whatever its weights are called."""
    return name in (CONFIG_NAME, INDEX_NAME, README_NAME) or is_companion(name)


def check_folder(folder: Path, param: str) -> None:
    """Raise unless the folder holds a causal language model in safetensors.

    Raises `ModelConfigMissing`, `ModelInvalid`, `NotACausalLM` or `UnsafeWeights`, about `param`.
    """
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}
    check_files(sizes, lambda name: (folder / name).open("rb"), param)


class StoredTensor(NamedTuple):
    """What the header of a safetensors file says of a tensor."""

    dtype: str  # as safetensors names it
    shape: Sequence[int]

    @property
    def numbers(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class ModelHeaders:
    """What a model's files say about it, without the weights."""

    weight_files: Collection[str]
    config: bytes  # config.json
    tensors: Mapping[str, StoredTensor]  # of the checkpoint
    tokenizer: Mapping[str, bytes] | None = None  # its files, where they have been read

    @property
    def shapes(self) -> dict[str, Sequence[int]]:
        """Of every tensor of the checkpoint."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def check_files(
    sizes: Mapping[str, int], open_: Callable[[str], IO[bytes]], param: str
) -> ModelHeaders:
    """Check a model's files by name, size and header; return what they say.

    Opens those that it reads through `open_`. Raises as `check_folder` does.
    """
    read_json: dict[str, bytes] = {}
    tensors: dict[str, StoredTensor] = {}

    def read(name: str) -> bytes:
        with open_(name) as file:
            read_json[name] = file.read(sizes[name])  # no more, should it have grown
        return read_json[name]

    weights = check_listing(sizes, read, param)
    for name, listed in weights.items():
        with open_(name) as file:
            stored = check_safetensors(file, name, param)
        if missing := listed - stored.keys():
            raise ModelInvalid(
                f"'{name}' lacks the tensor '{shortened(min(missing))}' that {INDEX_NAME} names.",
                param=param,
            )
        tensors |= stored
    return ModelHeaders(weights, read_json[CONFIG_NAME], tensors)


def read_tokenizer(
    sizes: Mapping[str, int], open_: Callable[[str], IO[bytes]]
) -> dict[str, bytes] | None:
    """The contents of the tokenizer's files, by name; None if they exceed the limits."""
    names = [name for name in sizes if is_tokenizer_file(name)]
    size = sum(sizes[name] for name in names)
    if size > MAX_TOKENIZER_BYTES or len(names) > MAX_TOKENIZER_FILES:
        return None
    contents = {}
    for name in names:
        with open_(name) as file:
            contents[name] = file.read(sizes[name])
    return contents


def check_listing(
    sizes: Mapping[str, int], read: Callable[[str], bytes], param: str
) -> dict[str, set[str]]:
    """Check a model's files by name and size, reading only its JSON through `read`.

    Returns the weight files that transformers would load, each with the tensors that the index
    lists for it (none if there is no index).
    """
    if ADAPTER_NAME in sizes:
        raise ModelInvalid(
            f"There is an adapter ({ADAPTER_NAME}), which transformers may or may not apply. Merge "
            "it into the model and save the result, or remove its files.",
            param=param,
        )
    if CONFIG_NAME not in sizes:
        hint = " Name the .gguf file itself." if _having(sizes, (GGUF_SUFFIX,)) else ""
        raise ModelConfigMissing(f"There is no {CONFIG_NAME}.{hint}", param=param)
    _check_size(sizes, CONFIG_NAME, MAX_CONFIG_BYTES, param)
    check_config(read(CONFIG_NAME), param)
    return checkpoint_files(sizes, read, param)


def checkpoint_files(
    sizes: Mapping[str, int], read: Callable[[str], bytes], param: str
) -> dict[str, set[str]]:
    """The weight files of a checkpoint, each with the tensors that the index lists for it.

    Without an index the set is empty. Everything that must know which files are the weights asks
    here, and transformers loads the same ones. A whole file beside an index of other files is two
    checkpoints: it is refused, because loaders differ in which of them they take. Raises
    `ModelInvalid` or `UnsafeWeights`.
    """
    if INDEX_NAME in sizes:
        _check_size(sizes, INDEX_NAME, MAX_INDEX_BYTES, param)
        if WEIGHTS_NAME in sizes:
            return {WEIGHTS_NAME: _check_whole(read(INDEX_NAME), param)}
        return _check_index(read(INDEX_NAME), sizes, param, is_read=True)
    if WEIGHTS_NAME in sizes:
        return {WEIGHTS_NAME: set()}
    pickles = _having(sizes, PICKLE_SUFFIXES)
    if pickles:
        raise UnsafeWeights(
            f"The weights are pickled ({pickles[0]}), and pickles run code when they are read; "
            "save the model as safetensors.",
            param=param,
        )
    raise ModelInvalid(f"There is neither {WEIGHTS_NAME} nor {INDEX_NAME}.", param=param)


def check_config(data: bytes, param: str) -> None:
    """Raise unless this is the config.json of a causal language model that is not quantised."""
    config = _parse_object(data, CONFIG_NAME, param)
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise ModelInvalid(
            f"{CONFIG_NAME} says that the weights are quantised "
            f"({shortened(str(method or 'quantization_config'))}). {DEQUANTISE}",
            param=param,
        )
    architectures = config.get("architectures")
    if isinstance(architectures, list) and any(
        isinstance(name, str) and name.endswith(CAUSAL_SUFFIXES) for name in architectures
    ):
        return
    raise NotACausalLM(
        f"{CONFIG_NAME} names the architectures {shortened(repr(architectures))}, none of which is "
        "a causal language model.",
        param=param,
    )


def check_safetensors(file: IO[bytes], name: str, param: str) -> dict[str, StoredTensor]:
    """The tensors of the file. Raises `ModelInvalid` if its header and size disagree."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ModelInvalid(f"'{name}' is truncated.", param=param)
    if length > MAX_HEADER_BYTES:
        raise ModelInvalid(
            f"The header of '{name}' is larger than {MAX_HEADER_BYTES} bytes.", param=param
        )
    header = file.read(length)
    spans: list[_Span] = []
    tensors: dict[str, StoredTensor] = {}

    def visit(key: str, at: int) -> int:
        entry, end = read_value(text, at)
        if key != METADATA_KEY:
            tensor = _tensor(name, key, entry, param)
            spans.append((*tensor.data_offsets, key))
            tensors[key] = StoredTensor(tensor.dtype, tensor.shape)
            _check_count(len(spans), f"The header of '{name}'", param)
        return end

    with _not_json(f"the header of {name}", param):
        text = header.decode()
        read_object(text, visit)
    _check_offsets(name, spans, size - 8 - length, param)
    return tensors


def _tensor(file: str, key: str, entry: object, param: str) -> _Tensor:
    """One entry of a header. Raises `ModelInvalid` if it is wrong or quantised."""
    name = f"The tensor '{shortened(key)}' of '{file}'"
    try:
        tensor = _Tensor.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        problem = f"{field}: {first['msg']}" if field else "it is not an object."
        raise ModelInvalid(f"{name} is described wrongly: {problem}", param=param) from None
    if tensor.dtype.startswith(QUANTISED_DTYPES):
        raise ModelInvalid(
            f"{name} is quantised ({shortened(tensor.dtype)}). {DEQUANTISE}", param=param
        )
    begin, after = tensor.data_offsets
    item = _BYTES.get(tensor.dtype)
    if after < begin:
        raise ModelInvalid(f"{name} is out of place.", param=param)
    if item and math.prod(tensor.shape) * item != after - begin:
        raise ModelInvalid(f"{name} has a wrong size.", param=param)
    return tensor


def _check_index(
    data: bytes, names: Collection[str], param: str, *, is_read: bool = False
) -> dict[str, set[str]]:
    """The tensors of each file that the index names; all files must be among `names`.

    With `is_read` transformers will read the index, for which it must have metadata.
    """
    weights: dict[str, set[str]] = {}
    seen = 0
    has_metadata = False

    def visit(key: str, at: int) -> int:
        nonlocal has_metadata
        if key == "metadata":
            has_metadata = text.startswith("{", at)
        if key == "weight_map" and text.startswith("{", at):
            return read_members(text, at, visit_tensor)
        return read_value(text, at)[1]

    def visit_tensor(tensor: str, at: int) -> int:
        nonlocal seen
        name, end = read_value(text, at)
        if not isinstance(name, str):
            raise ModelInvalid(
                f"{INDEX_NAME} gives no file name for '{shortened(tensor)}'.", param=param
            )
        if name not in weights:
            _check_weight_file(name, names, param)
        weights.setdefault(name, set()).add(tensor)
        seen += 1
        _check_count(seen, INDEX_NAME, param)
        return end

    with _not_json(INDEX_NAME, param):
        text = data.decode()
        read_object(text, visit)
    if not weights:
        raise ModelInvalid(f"{INDEX_NAME} has no weight_map with tensors.", param=param)
    if is_read and not has_metadata:
        raise ModelInvalid(
            f'{INDEX_NAME} has no object "metadata", which transformers needs: '
            'add "metadata": {}.',
            param=param,
        )
    return weights


def _check_weight_file(name: str, names: Collection[str], param: str) -> None:
    file = f"{INDEX_NAME} names '{shortened(name)}'"
    if "/" in name or "\\" in name or not name.endswith(".safetensors"):
        raise ModelInvalid(f"{file}: not a safetensors file.", param=param)
    if name not in names:
        raise ModelInvalid(f"{file}, which is missing.", param=param)


def _check_count(tensors: int, where: str, param: str) -> None:
    if tensors > MAX_TENSORS:
        raise ModelInvalid(f"{where} has more than {MAX_TENSORS} tensors.", param=param)


def _check_whole(data: bytes, param: str) -> set[str]:
    """The tensors that an index beside WEIGHTS_NAME lists, all of which must be in that file."""
    try:
        weights = _check_index(data, {WEIGHTS_NAME}, param)
    except ModelInvalid as error:
        raise ModelInvalid(
            f"There are both {WEIGHTS_NAME} and {INDEX_NAME}, and the index does not describe that "
            f"file: {error.detail} Remove the one that does not belong to the model.",
            param=param,
        ) from error
    return weights[WEIGHTS_NAME]


def _check_offsets(name: str, spans: Sequence[_Span], size: int, param: str) -> None:
    """Raise `ModelInvalid` unless the tensors' bytes fill the file without gaps.

    Follows each tensor to the next, because to sort them all would stop the other threads.
    """
    following: dict[int, tuple[int, str]] = {}
    for begin, after, key in spans:
        if begin < after:
            if begin in following:
                raise _out_of_place(name, key, param)
            following[begin] = after, key
    end, ends = 0, {0}
    while end in following:
        end, _ = following.pop(end)
        ends.add(end)
    stray = [(begin, key) for begin, (_, key) in following.items()]
    stray += [(begin, key) for begin, after, key in spans if begin == after and begin not in ends]
    if stray:
        raise _out_of_place(name, min(stray)[1], param)
    if end != size:
        state = "is truncated" if end > size else "has bytes that belong to no tensor"
        raise ModelInvalid(f"'{name}' {state}.", param=param)


def _out_of_place(name: str, key: str, param: str) -> ModelInvalid:
    return ModelInvalid(f"The tensor '{shortened(key)}' of '{name}' is out of place.", param=param)


@contextmanager
def _not_json(what: str, param: str) -> Iterator[None]:
    """Raise `ModelInvalid` where the block raises ValueError or RecursionError."""
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise ModelInvalid(f"{what} is not a JSON object: {error}", param=param) from error


def _parse_object(data: bytes, what: str, param: str) -> dict[str, Any]:
    with _not_json(what, param), TURN:
        parsed = json.loads(data)
    if not isinstance(parsed, dict):
        raise ModelInvalid(f"{what} is not a JSON object.", param=param)
    return parsed


def _check_size(sizes: Mapping[str, int], name: str, limit: int, param: str) -> None:
    if sizes[name] > limit:
        raise ModelInvalid(f"{name} is larger than {limit} bytes.", param=param)


def _having(names: Collection[str], suffixes: tuple[str, ...]) -> list[str]:
    return sorted(name for name in names if name.endswith(suffixes))

"""``python -I clean_process.py REQUEST FINDINGS``: loads artifacts as their users will.

It knows torch, transformers and safetensors, and cannot import Eigenpress. REQUEST is JSON:

    source     folder of the source model, with the tokenizer that an artifact must have, and as
               `reference` what its logits were in memory before it was compressed; or null
    dtype      the precision that an artifact must have; null: that of most bytes of the source
    carried    the names of the tensors in an artifact that its model does not use
    memory     how many bytes of the host a model may take; the layers of a larger one stay on the
               disk until they are needed
    artifacts  for each its `folder`, and as `reference` a safetensors file with `tokens`
               (sequences, length), `positions` (compared,) and the `logits` (sequences, compared,
               vocabulary) that the compressed model had in memory

FINDINGS becomes a JSON object: `source` has the differences of the source, and `artifacts` an entry
for each, see `findings`. It becomes the message of the error if the memory does not suffice.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""The largest relative difference of logits, by the precision that the model computes in. Two runs
of one model differ by rounding alone; a wrong tensor anywhere makes a difference of about 1."""

FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
BYTES = {"F32": 4, "BF16": 2, "F16": 2}
INTEGERS = {"I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1}

SAMPLES = (
    "The quick brown fox jumps over the lazy dog.",
    " leading and trailing blanks  ",
    "def f(x):\n\tif x > 1_000:\n        return {'a': [x, -1.5e-3]}\n\n\n",
    "Zażółć gęślą jaźń, Ünïcödé, naïve café",
    "日本語のテキスト 한국어 中文 русский العربية हिन्दी",
    "👩‍👩‍👧 emoji, e\u0301 combined, \u00a0 blanks, 1234567890",
)
"""Tokenizers differ on blanks, digits, letters beyond ASCII and composed characters."""

CODE = "its reference to Python code"
"""An artifact's tokenizer has none, whatever the source's has."""


def findings(
    folder: Path,
    source: Path,
    reference: Path,
    dtype: str | None,
    carried: Sequence[str],
    memory: int,
) -> dict[str, Any]:
    """What is wrong with an artifact (`differences`, a list of phrases), and its measurements.

    `logit_error` is ‖a − m‖ / ‖m‖ of its logits a and those in memory m; `same_predictions` is the
    share of positions at which both have the same most likely token; `positions` counts them.
    """
    differences = [*_stored_differently(folder, dtype or _prevailing(source))]
    differences += _tokenized_differently(source, folder)
    measured: dict[str, Any] = {}
    try:
        model = _load(folder, differences, carried, memory)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        differences.append(f"it does not load: {type(error).__name__}: {_one_line(error)}")
    else:
        measured = _compared(model, load_file(reference), differences)
    return {"differences": differences, **measured}


def source_differences(source: Path, reference: Path, memory: int) -> list[str]:
    """How the source differs from the model that was read from it, in phrases."""
    differences: list[str] = []
    try:
        model = _load_source(source, memory)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        differences.append(f"it does not load: {_one_line(error)}")
    else:
        _compared(_placed(model), load_file(reference), differences)
    return differences


def _load_source(source: Path, memory: int) -> Any:
    config = AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    config._attn_implementation = config._experts_implementation = None  # not the model's own
    return AutoModelForCausalLM.from_pretrained(
        source,
        config=config,
        dtype=_precision(),
        local_files_only=True,
        use_safetensors=True,
        **_placement(source, memory),
    )


@torch.inference_mode()
def logits_at(model: Any, tokens: Tensor, positions: Tensor) -> Tensor:
    """The model's logits at some positions of sequences: (sequences, positions, vocabulary)."""
    if not hasattr(model, "hf_device_map"):  # else accelerate moves them
        tokens = tokens.to(next(model.parameters()).device)
    logits: Tensor = model(input_ids=tokens, use_cache=False).logits
    return logits[:, positions.to(logits.device)].float().cpu()


def _stored_differently(folder: Path, dtype: str) -> Iterator[str]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt", backend="pread") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point():
                    continue
                if tensor.ndim and str(tensor.dtype) != f"torch.{dtype}":  # else: a constant
                    yield f"the tensor '{name}' is stored in {tensor.dtype}, not in {dtype}"
                if tensor.numel() and not torch.stack(tensor.aminmax()).isfinite().all():
                    yield f"the tensor '{name}' is not finite"


def _prevailing(source: Path) -> str:
    """The precision in which most bytes of the source are stored."""
    stored: Counter[str] = Counter()
    for path in source.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_slice(name)
                if (dtype := tensor.get_dtype()) in FLOATS:
                    stored[FLOATS[dtype]] += BYTES[dtype] * math.prod(tensor.get_shape())
    return stored.most_common(1)[0][0]


def _tokenized_differently(source: Path, folder: Path) -> Iterator[str]:
    try:
        theirs, ours = {**_description(source), CODE: False}, _description(folder)
    except Exception as error:
        yield f"its tokenizer does not load: {type(error).__name__}: {_one_line(error)}"
        return
    if different := [what for what, value in theirs.items() if ours[what] != value]:
        yield f"its tokenizer differs from the source's in {', '.join(different)}"


@cache
def _description(folder: Path) -> Mapping[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    texts = (*SAMPLES, " ".join(map(str, tokenizer.all_special_tokens)))
    return {
        "its class": type(tokenizer).__name__,
        "its vocabulary": tokenizer.get_vocab(),
        "its special tokens": tokenizer.special_tokens_map,
        "the ids of its special tokens": tokenizer.all_special_ids,
        "its chat template": tokenizer.chat_template,
        "its longest text": str(tokenizer.model_max_length),  # it may be NaN
        "its padding": (tokenizer.padding_side, tokenizer.pad_token_id),
        CODE: "auto_map" in tokenizer.init_kwargs,
        "the ids of a text": [_ids(tokenizer, text) for text in texts],
    }


def _ids(tokenizer: Any, text: str) -> Any:
    """The ids of a text, or the error that it raises: some tokenizers know few characters."""
    try:
        return tokenizer(text)["input_ids"]
    except Exception as error:
        return _one_line(error)


def _load(folder: Path, differences: list[str], carried: Sequence[str], memory: int) -> Any:
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=_precision(),
        trust_remote_code=True,  # it is the artifact's own modelling file
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
        **_placement(folder, memory),
    )
    loading["unexpected_keys"] = set(loading["unexpected_keys"]).difference(carried)
    differences += [
        f"{len(names)} {kind.replace('_', ' ')}, such as {min(map(str, names))}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if (names := loading[kind])
    ]
    return _placed(model)


def _precision() -> Any:
    """Few processors compute fast in less than float32."""
    return "auto" if torch.cuda.is_available() else torch.float32


def _placement(folder: Path, memory: int) -> dict[str, Any]:
    """Arguments of `from_pretrained` that leave layers on the disk, if a model exceeds the memory.

    `memory` counts bytes of the host. A GPU is filled first. Integers grow when they become
    weights, after the layers have found their places.
    """
    limits: dict[Any, int] = {"cpu": memory}
    width = None
    if torch.cuda.is_available():
        limits[0] = int(torch.cuda.mem_get_info(0)[0] * 0.8)
    else:
        width = 4
    loaded, computing = _bytes(folder, width)
    if computing <= limits.get(0, memory):
        return {}
    places = {place: limit * loaded // computing for place, limit in limits.items()}
    return {"device_map": "auto", "max_memory": places, "offload_folder": f"{folder}.offloaded"}


def _bytes(folder: Path, width: int | None) -> tuple[int, int]:
    """The bytes of all weights as they are loaded, and once integers have become weights.

    `width` is the bytes of a number; None: as they are stored.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    groups = (config.get("quantization_config") or {}).get("config_groups", {}).values()
    bits = {name: each["weights"]["num_bits"] for each in groups for name in each["targets"]}
    floats = Counter[int]()  # how many numbers take so many bytes
    codes = weights = 0  # the bytes of integers, and how many weights they become
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensor = file.get_slice(name)
                kind, numbers = tensor.get_dtype(), math.prod(tensor.get_shape())
                if kind in FLOATS:
                    floats[width or BYTES[kind]] += numbers
                    continue
                codes += numbers * INTEGERS.get(kind, 8)
                layer, _, part = name.rpartition(".")
                if part == "weight_packed":
                    weights += numbers * 32 // bits[layer]
                elif part == "weight" and layer in bits:
                    weights += numbers
    size = sum(each * numbers for each, numbers in floats.items())
    ((each, _),) = floats.most_common(1)
    return size + codes, size + each * weights


def _placed(model: Any) -> Any:
    """The model ready to compute, on the GPU if there is one."""
    model.eval()
    if hasattr(model, "hf_device_map"):
        if hasattr(model, "ct_decompress_hook"):  # it would take away accelerate's in a pass
            model.hf_quantizer.compressor.decompress_model(model)
        return model
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _compared(
    model: Any, reference: Mapping[str, Tensor], differences: list[str]
) -> dict[str, Any]:
    expected = reference["logits"].double()
    logits = logits_at(model, reference["tokens"], reference["positions"]).double()
    if not logits.isfinite().all():
        differences.append("its logits are not finite")
        return {}
    error = _relative(logits - expected, expected)
    same = float((logits.argmax(-1) == expected.argmax(-1)).double().mean())
    if not error <= TOLERANCE[model.dtype]:
        differences.append(
            f"its logits differ by {error:.3g} (relative) from those of the compressed model in "
            f"memory; {same:.0%} of the predictions are the same"
        )
    count = expected.shape[0] * expected.shape[1]
    return {"logit_error": error, "same_predictions": same, "positions": count}


def _relative(difference: Tensor, expected: Tensor) -> float:
    """‖difference‖ / ‖expected‖; 0 of two that are zero everywhere."""
    size = float(difference.norm())
    return size and size / max(float(expected.norm()), sys.float_info.min)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def main(request_path: str, findings_path: str) -> None:
    request = json.loads(Path(request_path).read_text("utf-8"))
    source, memory, reference = Path(request["source"]), request["memory"], request["reference"]
    try:
        differences = source_differences(source, Path(reference), memory) if reference else []
        artifacts = [
            findings(
                Path(artifact["folder"]),
                source,
                Path(artifact["reference"]),
                request["dtype"],
                request["carried"],
                memory,
            )
            for artifact in request["artifacts"]
        ]
        found: Any = {"source": differences, "artifacts": artifacts}
    except (torch.OutOfMemoryError, MemoryError) as error:
        found = _one_line(error)
    Path(findings_path).write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    for package in ("api", "service", "workers"):
        sys.modules[package] = None  # type: ignore[assignment] # an import of it fails
    main(*sys.argv[1:])

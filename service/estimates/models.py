"""The shapes of a model, from the headers of its files.

config.json, or a GGUF file's metadata, says which layers there are. The headers say which numbers
are stored; they bound what the former may claim.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from service.domain.costs.shapes import NUMBER_BYTES, Model, ShapesUnknown, model_shapes
from service.inputs.models.files import ModelHeaders
from service.inputs.models.gguf_header import GGUFHeader
from service.inputs.models.sources import Headers
from service.printable import shortened

PRECISIONS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Those that an artifact may have, by their names in safetensors."""

GGUF_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""The `model_type` of a GGUF file's architecture, where its metadata say all shapes."""


def model_of(headers: Headers) -> Model:
    """The shapes of the model in the precision of its checkpoint. Raises ShapesUnknown.

    A GGUF file counts as its expansion to float32.
    """
    if isinstance(headers, GGUFHeader):
        return _gguf_model(headers)
    return _safetensors_model(headers)


def _safetensors_model(headers: ModelHeaders) -> Model:
    stored: Counter[str] = Counter()  # numbers
    for tensor in headers.tensors.values():
        if tensor.dtype in PRECISIONS:  # of others, the size has not been checked
            stored[tensor.dtype] += tensor.numbers
    if not stored:
        raise ShapesUnknown(f"the checkpoint holds no weights in {', '.join(PRECISIONS)}")
    dtype = max(stored, key=lambda each: stored[each] * NUMBER_BYTES[PRECISIONS[each]])
    numbers = stored.total()
    model = model_shapes(json.loads(headers.config) | {"dtype": PRECISIONS[dtype]})
    if model.parameters > numbers:  # more are possible: tensors that the model does not use
        raise ShapesUnknown(
            f"config.json describes a model of {model.parameters} parameters, but the checkpoint "
            f"holds {numbers}"
        )
    return model


def _gguf_model(header: GGUFHeader) -> Model:
    if header.shapes is None:
        raise ShapesUnknown("the tensors of the GGUF file cannot be read from its header")
    model = model_shapes(_gguf_config(header))
    numbers = sum(map(math.prod, header.shapes.values()))
    if model.parameters != numbers:
        raise ShapesUnknown(
            f"the GGUF file's metadata describe a model of {model.parameters} parameters, but it "
            f"holds {numbers}"
        )
    return model


def _gguf_config(header: GGUFHeader) -> dict[str, Any]:
    """What config.json would say of the shapes. Raises ShapesUnknown."""
    architecture, shapes = header.metadata["general.architecture"], header.shapes or {}
    kind = GGUF_TYPES.get(str(architecture))
    if kind is None or f"{architecture}.expert_count" in header.metadata:
        known = ", ".join(GGUF_TYPES)
        raise ShapesUnknown(
            f"the shapes of the GGUF architecture '{shortened(str(architecture))}' are not known, "
            f"only those of models without experts of: {known}"
        )

    def said(key: str) -> Any:
        return header.metadata.get(f"{architecture}.{key}")

    heads, embedding = said("attention.head_count"), shapes.get("token_embd.weight", ())
    return {
        "model_type": kind,
        "dtype": "float32",
        "vocab_size": embedding[1] if len(embedding) == 2 else None,
        "tie_word_embeddings": "output.weight" not in shapes,
        "num_hidden_layers": said("block_count"),
        "hidden_size": said("embedding_length"),
        "intermediate_size": said("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": said("attention.head_count_kv") or heads,
        "head_dim": said("attention.key_length"),
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_up.bias" in shapes,
    }

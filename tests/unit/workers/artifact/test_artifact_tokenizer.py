"""An artifact's tokenizer is its source's, and loads without a prompt or remote code."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PretrainedConfig

from tests.fixtures.models import ARCHITECTURES, byte_tokenizer, tiny_model
from workers.artifact.checkpoint_writer import write_checkpoint
from workers.compression.interpolation import interpolate
from workers.compression.layers import compressible_layers
from workers.compression.solve import Factors
from workers.compression.unfuse import unfuse

TEXT = "def add(a, b):\n    return a + b  # naïve</s>"
CHAT = [{"role": "user", "content": "Hello"}]
TEMPLATE = "{% for message in messages %}{{ bos_token }}{{ message['content'] }}{% endfor %}"

KINDS = {
    "llama": (ARCHITECTURES["llama"], "LlamaTokenizer"),
    "llama, byte-level": (ARCHITECTURES["llama"], "LlamaTokenizerFast"),
    "llama, generic": (ARCHITECTURES["llama"], "PreTrainedTokenizerFast"),
    "llama, backend": (ARCHITECTURES["llama"], "TokenizersBackend"),
    "mistral": (ARCHITECTURES["mistral"], "LlamaTokenizer"),
    "qwen2": (ARCHITECTURES["qwen2"], "Qwen2Tokenizer"),
    "gemma2": (ARCHITECTURES["gemma2"], "GemmaTokenizerFast"),
    "phi3": (ARCHITECTURES["phi3"], "LlamaTokenizer"),
    "gpt2": (ARCHITECTURES["gpt2"], "GPT2Tokenizer"),
    "gpt2, unnamed": (ARCHITECTURES["gpt2"], None),
    "gpt-neox": (ARCHITECTURES["gpt-neox"], "GPTNeoXTokenizer"),
    "gpt-neox, generic": (ARCHITECTURES["gpt-neox"], "PreTrainedTokenizerFast"),
}
"""An architecture, and the class that tokenizer_config.json names."""

SENTENCE_PIECES = ("llama", "mistral", "gemma2", "phi3")


def sentence_pieces() -> Tokenizer:
    """Words with the spaces before them marked, as SentencePiece does; bytes for all else."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "def", "a"]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: number for number, piece in enumerate(pieces)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def save_source(folder: Path, kind: str) -> PretrainedConfig:
    config, named = KINDS[kind]
    tiny_model(config).save_pretrained(folder)
    tokenizer = byte_tokenizer(adds_bos=True)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    if kind in SENTENCE_PIECES:
        sentence_pieces().save(str(folder / "tokenizer.json"))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"tokenizer_class": named}
    if named is None:
        del settings["tokenizer_class"]
    path.write_text(json.dumps(settings))
    return config


def write_artifact(source: Path, folder: Path, config: PretrainedConfig) -> None:
    """Write the model with its last layer replaced, and a modelling file that must not be run."""
    model = tiny_model(config)
    unfuse(model)
    layer = compressible_layers(model)[-1]
    bias = torch.zeros(layer.out_features) if layer.has_bias else None
    factors = Factors(torch.ones(1, layer.in_features), torch.ones(layer.out_features, 1), bias)
    layers = [interpolate(factors)]
    write_checkpoint(source, folder, {layer.name: 1}, lambda _: layers, torch.float32)
    (folder / "modeling_eigenpress.py").write_text("raise SystemExit('remote code')")


def description(tokenizer: Any) -> dict[str, Any]:
    return {
        "class": type(tokenizer),
        "ids": tokenizer(TEXT)["input_ids"],
        "text": tokenizer.decode(tokenizer(TEXT)["input_ids"]),
        "special": tokenizer.special_tokens_map,
        "vocabulary": tokenizer.get_vocab(),
        "chat": tokenizer.apply_chat_template(CHAT, tokenize=False),
        "longest": tokenizer.model_max_length,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_tokenizer_of_the_source(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = save_source(tmp_path / "source", kind)
    write_artifact(tmp_path / "source", tmp_path / "artifact", config)
    questions: list[object] = []

    def no(question: object) -> str:  # transformers would swallow what this raised
        questions.append(question)
        return "n"

    monkeypatch.setattr(builtins, "input", no)
    expected = description(AutoTokenizer.from_pretrained(tmp_path / "source"))
    assert description(AutoTokenizer.from_pretrained(tmp_path / "artifact")) == expected
    assert questions == []

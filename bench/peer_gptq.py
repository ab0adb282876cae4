"""Rounds a model by the GPTQ of llm-compressor. The interpreter of `.venv-peers` runs this file.

It imports nothing of ours. `bench.peers` calls it and checks what it writes: for each layer L the
tensors `L.weight`, dequantised, and `L.scales` of shape (out, groups); in the file's metadata the
library's version and the settings that it used.
"""

from __future__ import annotations

import argparse
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import (
    ActivationOrdering,
    QuantizationArgs,
    QuantizationScheme,
)
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM

LIBRARY = "llmcompressor"


def main() -> None:
    given = _parser().parse_args()
    sequences = load_file(given.sequences)["input_ids"]  # (sequences, length)
    batches: Any = [{"input_ids": each[None]} for each in sequences]
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    weights = QuantizationArgs(
        num_bits=given.bits, group_size=given.group_size, observer=given.observer
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    modifier = GPTQModifier(config_groups={"all": scheme}, ignore=["lm_head"])
    oneshot(
        model=model,
        tokenizer=str(given.model),
        dataset=DataLoader(batches, batch_size=None),
        num_calibration_samples=len(sequences),
        recipe=modifier,
    )
    tensors, used = {}, None
    for name, module in model.named_modules():
        if getattr(module, "quantization_scheme", None) is not None:
            used = module.quantization_scheme.weights
            tensors[f"{name}.weight"] = module.weight.detach().contiguous()
            tensors[f"{name}.scales"] = module.weight_scale.detach().contiguous()
    if used is None:
        raise SystemExit("llm-compressor has rounded no layer of this model")
    settings = {
        "version": version(LIBRARY),
        "actorder": ActivationOrdering(used.actorder).value,
        "observer": str(used.observer),
        "block_size": str(modifier.block_size),
        "dampening_frac": str(modifier.dampening_frac),
    }
    save_file(tensors, given.out, settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="folder of the model and its tokenizer")
    parser.add_argument("sequences", type=Path, help="safetensors file with `input_ids`")
    parser.add_argument("out", type=Path, help="safetensors file to write")
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group-size", type=int, required=True)
    parser.add_argument("--observer", help="how scales are found; the library's default if absent")
    return parser


if __name__ == "__main__":
    main()

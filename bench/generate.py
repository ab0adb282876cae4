"""Loads a checkpoint as its users do, and generates code with it.

    python -I bench/generate.py FOLDER [--prompt TEXT] [--new-tokens N]

This file uses only torch and transformers, which reads integers by compressed-tensors. It blocks
imports of Ray and Eigenpress, so a checkpoint that loads here also loads on a machine without them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

FORBIDDEN = ("api", "ray", "service", "workers")

PROMPT = '''\
def is_prime(n: int) -> bool:
    """Return True if n is a prime number, else False."""
    if n < 2:
        return False'''


def main() -> None:
    parser = _parser()
    arguments = parser.parse_args()
    if not arguments.folder.is_dir():
        parser.error(f"{arguments.folder} is not a folder")
    # None in sys.modules makes an import fail and a package look absent.
    for name in FORBIDDEN:
        sys.modules[name] = None  # type: ignore[assignment]
    text = complete(arguments.folder, arguments.prompt, arguments.new_tokens)
    print(text)
    if not text.removeprefix(arguments.prompt).strip():
        raise SystemExit("the model wrote nothing")


def complete(folder: Path, prompt: str, new_tokens: int) -> str:
    """The prompt and the model's greedy continuation of it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    return str(tokenizer.decode(tokens[0], skip_special_tokens=True))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Complete a prompt with a checkpoint.")
    parser.add_argument("folder", type=Path, help="a folder made by `eigenpress download`")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--new-tokens", type=int, default=64)
    return parser


if __name__ == "__main__":
    main()

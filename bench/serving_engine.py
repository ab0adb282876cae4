"""Times one model in one engine. Runs without Eigenpress, in the engine's own environment.

    python -I bench/serving_engine.py vllm folder

Each line of the input is a request, a JSON object: a `prompt` of tokens, and how many tokens to
`generate`. The answer is the seconds that it took, or an object with the engine's `error`. The
first answer, before any request, says that the model is loaded.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ |= {  # before vLLM reads it
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

Generate = Callable[[list[int], int], None]


def load_vllm(folder: str) -> Generate:
    """The model in vLLM, one sequence at a time, in bfloat16."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        folder,
        dtype="bfloat16",
        trust_remote_code=True,
        skip_tokenizer_init=True,
        enforce_eager=True,
        enable_prefix_caching=False,  # every repetition has the same prompt
        max_model_len=2048,
        max_num_seqs=1,
        max_num_batched_tokens=2048,
        disable_log_stats=True,
    )

    def generate(prompt: list[int], count: int) -> None:
        greedy = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
        engine.generate([{"prompt_token_ids": prompt}], greedy, use_tqdm=False)

    return generate


def load_transformers(folder: str, *, multiply_out: bool = False) -> Generate:
    """The same in transformers; `multiply_out` turns integers into plain layers."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.bfloat16
    ).to(device)
    if multiply_out:
        from compressed_tensors.compressors import decompress_module

        model.apply(partial(decompress_module, leave_decompressed=False))

    @torch.inference_mode()
    def generate(prompt: list[int], count: int) -> None:
        ids = torch.tensor([prompt], device=device)
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            min_new_tokens=count,
            max_new_tokens=count,
        )
        if device == "cuda":
            torch.cuda.synchronize()

    return generate


ENGINES: dict[str, Callable[[str], Generate]] = {
    "vllm": load_vllm,
    "transformers": load_transformers,
    "transformers, multiplied out": partial(load_transformers, multiply_out=True),
}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an engine prints is no answer

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    engine, folder = sys.argv[1:]
    try:
        generate = ENGINES[engine](folder)
        generate([1] * 16, 4)
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}"})
        raise
    answer(0.0)
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        generate(request["prompt"], request["generate"])
        answer(time.perf_counter() - start)


if __name__ == "__main__":  # vLLM may start processes of its own
    main()

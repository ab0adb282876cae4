"""Serves artifacts with vLLM. Runs in an environment of its own, which has vLLM and not Eigenpress.

Each line of the input is a request, a JSON object: the `folder` of a model, the `implementation`
that vLLM shall choose, `prompts` as lists of tokens, and how many tokens to `generate`. The answer
is a line, too: the tokens after each prompt with their log-likelihoods, or the engine's `error`.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from typing import Any

os.environ |= {  # before vLLM reads it
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}

from vllm import LLM, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory


def answer(request: dict[str, Any]) -> dict[str, Any]:
    engine = None
    try:
        engine = LLM(
            request["folder"],
            model_impl=request["implementation"],
            trust_remote_code=True,
            skip_tokenizer_init=True,
            enforce_eager=True,
            max_model_len=128,
            max_num_seqs=4,
            max_num_batched_tokens=256,
            disable_log_stats=True,
        )
        greedy = SamplingParams(
            temperature=0,
            max_tokens=request["generate"],
            ignore_eos=True,
            logprobs=0,
            detokenize=False,
        )
        prompts = [{"prompt_token_ids": prompt} for prompt in request["prompts"]]
        outputs = [each.outputs[0] for each in engine.generate(prompts, greedy, use_tqdm=False)]
        return {
            "tokens": [list(each.token_ids) for each in outputs],
            "log_likelihoods": [
                [
                    chosen[token].logprob
                    for token, chosen in zip(each.token_ids, each.logprobs, strict=True)
                ]
                for each in outputs
            ],
        }
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    finally:
        if engine is not None:
            engine.llm_engine.engine_core.shutdown()
        del engine
        gc.collect()
        cleanup_dist_env_and_memory()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the engine prints is no answer
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":  # vLLM may start processes of its own
    main()

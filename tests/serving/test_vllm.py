"""vLLM serves artifacts, and continues texts as transformers does in the same precision."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from bench import demo_data
from service.domain.states import JobState
from service.standalone.s3_server import LocalS3
from tests.fixtures.in_process import LocalInstallation, answer_for_ray
from tests.fixtures.models import save_tiny_model, tiny_model
from tests.integration.test_integers import Made
from tests.serving.conftest import Engine
from workers.artifact.checkpoint_writer import write_checkpoint
from workers.compression.candidates import Width
from workers.compression.interpolation import Interpolation, interpolate
from workers.compression.layers import compressible_layers
from workers.compression.rounding.grid import RoundedWeight, best_scales, nearest
from workers.compression.solve import Factors
from workers.model.tokenizer import load_tokenizer

GENERATED = 4
CANDIDATES, PROMPTS, PROMPT_LENGTH = 256, 6, 12
LEAD = 0.4
"""By how much each generated token's log-likelihood leads. Random models often have near ties,
which rounding decides: the texts with such tokens are left out."""
TOLERANCE = 0.2
"""Of log-likelihoods in bfloat16, whose numbers have three digits."""

_SHAPE: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
_GROUPED_QUERIES = _SHAPE | {"intermediate_size": 192, "num_key_value_heads": 2}
_HEADS = _GROUPED_QUERIES | {"head_dim": 32}
_WINDOWS = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**_HEADS, tie_word_embeddings=False),
    "wide-llama": LlamaConfig(**_HEADS | {"intermediate_size": 20000}),
    "qwen3": Qwen3Config(**_HEADS, tie_word_embeddings=True),
    "gemma3": Gemma3TextConfig(**_HEADS, **_WINDOWS),
    "mistral": MistralConfig(**_HEADS, sliding_window=8),
    "qwen2": Qwen2Config(**_GROUPED_QUERIES),
    "gemma2": Gemma2Config(
        **_HEADS, **_WINDOWS, attn_logit_softcapping=20.0, final_logit_softcapping=30.0
    ),
    "phi3": Phi3Config(**_GROUPED_QUERIES, pad_token_id=1),
    "opt": OPTConfig(**_SHAPE, word_embed_proj_dim=128, ffn_dim=192, pad_token_id=1),
    "gpt-neox": GPTNeoXConfig(**_SHAPE, intermediate_size=192),
}
NEWEST = ["llama", "qwen3", "gemma3"]
SOURCE = Path(shutil.__file__)
RANDOM_TEXTS = torch.randint(
    258, (CANDIDATES, PROMPT_LENGTH), generator=torch.Generator().manual_seed(3)
)
RANKS = (37, None, None, 21, None)
"""Of the layers, in turn: no two blocks have the same ranks, and most layers stay dense. vLLM
multiplies all of low rank out but those of an MLP that is wide."""


def low_rank_artifact(folder: Path, name: str, *, bias: bool) -> Path:
    """A checkpoint with random layers of the ranks above."""
    source = save_tiny_model(folder / "source", CONFIGS[name])
    model = tiny_model(CONFIGS[name])
    generator = torch.Generator().manual_seed(2)
    layers = compressible_layers(model)
    ranks = {
        layer.name: rank for layer, rank in zip(layers, itertools.cycle(RANKS)) if rank is not None
    }

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def compressed(layer: str) -> Interpolation:
        dense, rank = model.get_submodule(layer), ranks[layer]
        basis = random(rank, dense.in_features) / 5
        others = random(dense.out_features, rank) / rank**0.5
        has_bias = bias or dense.bias is not None
        return interpolate(Factors(basis, others, random(dense.out_features) if has_bias else None))

    artifact = folder / f"{name}-low-rank-{bias}"
    write_checkpoint(source, artifact, ranks, partial(map, compressed), torch.bfloat16)
    return artifact


def integer_artifact(folder: Path, name: str) -> Path:
    """A checkpoint whose layers have 4 bits, but for those that stay dense."""
    source = save_tiny_model(folder / "source", CONFIGS[name])
    model = tiny_model(CONFIGS[name])

    def compressed(layer: str) -> RoundedWeight:
        weight = model.get_submodule(layer).weight.detach()
        ones = torch.ones(weight.shape[1])
        return nearest(weight, best_scales(weight, ones, Width(4), torch.bfloat16), Width(4))

    dense = {"model.layers.1.self_attn.o_proj", "model.layers.2.mlp.down_proj"}
    layers = [layer.name for layer in compressible_layers(model) if layer.name not in dense]
    artifact = folder / f"{name}-integers"
    forms = dict.fromkeys(layers, Width(4))
    write_checkpoint(source, artifact, forms, partial(map, compressed), torch.bfloat16)
    return artifact


@torch.no_grad()
def continued(folder: Path, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' likeliest tokens after each text, and the two highest log-likelihoods of each.

    Shapes (texts, GENERATED) and (texts, GENERATED, 2).
    """
    model = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.bfloat16
    )
    likelihoods = []
    for _ in range(GENERATED):
        logits = model(input_ids=texts, logits_to_keep=1).logits[:, -1].float()
        best = logits.log_softmax(-1).topk(2)
        texts = torch.cat((texts, best.indices[:, :1]), 1)
        likelihoods.append(best.values)
    return texts[:, -GENERATED:], torch.stack(likelihoods, 1)


def assert_served(
    engine: Engine, folder: Path, implementation: str, texts: torch.Tensor = RANDOM_TEXTS
) -> None:
    """Check that vLLM continues texts with the tokens that transformers finds likeliest."""
    tokens, likelihoods = continued(folder, texts)
    leads = (likelihoods[..., 0] - likelihoods[..., 1]).amin(1)
    chosen = (leads > LEAD).nonzero().flatten()[:PROMPTS]
    assert len(chosen) == PROMPTS
    answer = engine.generate(folder, texts[chosen].tolist(), GENERATED, implementation)
    assert "error" not in answer, answer["error"]
    assert answer["tokens"] == tokens[chosen].tolist()
    found = torch.tensor(answer["log_likelihoods"])
    torch.testing.assert_close(found, likelihoods[chosen, :, 0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", CONFIGS)
def test_low_rank_layers_are_served_beside_dense_ones(
    engine: Engine, tmp_path: Path, name: str
) -> None:
    assert_served(engine, low_rank_artifact(tmp_path, name, bias=False), "auto")


@pytest.mark.parametrize("name", NEWEST)
def test_low_rank_layers_may_have_biases(engine: Engine, tmp_path: Path, name: str) -> None:
    assert_served(engine, low_rank_artifact(tmp_path, name, bias=True), "transformers")


@pytest.mark.parametrize("implementation", ["auto", "transformers"])
@pytest.mark.parametrize("name", NEWEST)
def test_integers_are_served(
    engine: Engine, tmp_path: Path, name: str, implementation: str
) -> None:
    assert_served(engine, integer_artifact(tmp_path, name), implementation)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory, local_s3: LocalS3) -> Iterator[Made]:
    """What a job makes of SmolLM2-135M."""
    folder = tmp_path_factory.mktemp("smollm2")
    with pytest.MonkeyPatch.context() as patch:
        answer_for_ray(patch)
        installation = LocalInstallation(folder, local_s3, patch)
        model = installation.inputs / demo_data.MODEL_FILE
        shutil.copyfile(demo_data.model_file(), model)
        demo_data.copy_standard_library(installation.inputs / "python")
        job = installation.create(
            model={"source": "local", "path": str(model)},
            calibration={
                "data": {"source": "local", "path": str(installation.inputs / "python")},
                "sequences": 16,
                "sequence_length": 128,
                "batch_size": 8,
            },
            targets=[{"keep": 0.6}, {"bytes_fraction": 0.4, "precisions": "vllm-cpu"}],
            evaluation={"sequences": 4, "decode_tokens": 4},
            dtype="bfloat16",
        )
        installation.attempt(workers=1)
        done = installation.store.records.get(job.id)
        assert done.state is JobState.SUCCEEDED, done.failure
        yield Made(installation, job, folder / "made")
        installation.store.close()


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["keep-0.6", "bytes-0.4-vllm-cpu"])
def test_a_real_model_is_served(engine: Engine, smollm2: Made, name: str) -> None:
    folder = smollm2.folders[name]
    text = load_tokenizer(folder)(SOURCE.read_text())["input_ids"]
    texts = torch.tensor(text[: len(text) // PROMPT_LENGTH * PROMPT_LENGTH])
    assert_served(engine, folder, "auto", texts.view(-1, PROMPT_LENGTH)[: CANDIDATES // 8])

"""vLLM serves artifacts, and continues texts as transformers does in the same precision."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, Qwen3Config

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

SHAPE: dict[str, Any] = {
    "vocab_size": 258,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "qwen3": Qwen3Config(**SHAPE, tie_word_embeddings=True),
    "gemma3": Gemma3TextConfig(
        **SHAPE,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}
SOURCE = Path(shutil.__file__)
RANDOM_TEXTS = torch.randint(
    258, (CANDIDATES, PROMPT_LENGTH), generator=torch.Generator().manual_seed(3)
)
LOW_RANK = {
    "0.self_attn.q_proj": 37,
    "0.self_attn.o_proj": 51,
    "0.mlp.up_proj": 63,
    "1.self_attn.k_proj": 21,
    "1.self_attn.v_proj": 33,
    "1.mlp.gate_proj": 45,
    "1.mlp.up_proj": 45,
    "1.mlp.down_proj": 77,
    "2.self_attn.o_proj": 1,
}
"""The ranks of some layers. No two blocks have the same ones, and their neighbours are dense."""


def low_rank_artifact(folder: Path, config: Any, *, bias: bool) -> Path:
    """A checkpoint with random layers of the ranks above."""
    source = save_tiny_model(folder / "source", config)
    model = tiny_model(config)
    generator = torch.Generator().manual_seed(2)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def compressed(name: str) -> Interpolation:
        out, into = model.get_submodule(name).weight.shape
        rank = ranks[name]
        factors = Factors(
            random(rank, into) / 5, random(out, rank) / rank**0.5, random(out) if bias else None
        )
        return interpolate(factors)

    ranks = {f"model.layers.{name}": rank for name, rank in LOW_RANK.items()}
    artifact = folder / f"{config.model_type}-low-rank-{bias}"
    write_checkpoint(source, artifact, ranks, partial(map, compressed), torch.bfloat16)
    return artifact


def integer_artifact(folder: Path, config: Any) -> Path:
    """A checkpoint whose layers have 4 bits, but for those that stay dense."""
    source = save_tiny_model(folder / "source", config)
    model = tiny_model(config)

    def compressed(name: str) -> RoundedWeight:
        weight = model.get_submodule(name).weight.detach()
        ones = torch.ones(weight.shape[1])
        return nearest(weight, best_scales(weight, ones, Width(4), torch.bfloat16), Width(4))

    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.startswith("model.layers.")
        and name not in ("model.layers.1.self_attn.o_proj", "model.layers.2.mlp.down_proj")
    ]
    artifact = folder / f"{config.model_type}-integers"
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


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_low_rank_layers_are_served_beside_dense_ones(
    engine: Engine, tmp_path: Path, name: str, bias: bool
) -> None:
    folder = low_rank_artifact(tmp_path, CONFIGS[name], bias=bias)
    assert_served(engine, folder, "transformers")


@pytest.mark.parametrize("name", list(CONFIGS))
def test_vllm_chooses_the_implementation_itself(engine: Engine, tmp_path: Path, name: str) -> None:
    assert_served(engine, low_rank_artifact(tmp_path, CONFIGS[name], bias=True), "auto")


@pytest.mark.parametrize("implementation", ["auto", "transformers"])
@pytest.mark.parametrize("name", list(CONFIGS))
def test_integers_are_served(
    engine: Engine, tmp_path: Path, name: str, implementation: str
) -> None:
    assert_served(engine, integer_artifact(tmp_path, CONFIGS[name]), implementation)


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
        done = installation.store.users.get(job.id)
        assert done.state is JobState.SUCCEEDED, done.failure
        yield Made(installation, job, folder / "made")
        installation.store.close()


@pytest.mark.parametrize("name", ["keep-0.6", "bytes-0.4-vllm-cpu"])
def test_a_real_model_is_served(engine: Engine, smollm2: Made, name: str) -> None:
    folder = smollm2.folders[name]
    text = load_tokenizer(folder)(SOURCE.read_text())["input_ids"]
    texts = torch.tensor(text[: len(text) // PROMPT_LENGTH * PROMPT_LENGTH])
    assert_served(engine, folder, "auto", texts.view(-1, PROMPT_LENGTH)[: CANDIDATES // 8])

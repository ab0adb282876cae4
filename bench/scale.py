"""Prints what the cost model predicts for large models: the tables of docs/scale.md.

python -m bench.scale
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from service.domain.costs.cluster import Cluster, Cost
from service.domain.costs.formulas import block_statistics, solution_bytes
from service.domain.costs.machines import GPU
from service.domain.costs.shapes import Model, model_shapes
from service.domain.costs.steps import step_costs
from service.domain.spec.job import JobSpec
from service.domain.states import Step

LLAMA = {"model_type": "llama", "dtype": "bfloat16", "tie_word_embeddings": False}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "Llama-2-7B": LLAMA
    | {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"num_key_value_heads": 32, "intermediate_size": 11008, "vocab_size": 32000},
    "Llama-3-70B": LLAMA
    | {"hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64}
    | {"num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256},
    "Llama-3.1-405B": LLAMA
    | {"hidden_size": 16384, "num_hidden_layers": 126, "num_attention_heads": 128}
    | {"num_key_value_heads": 8, "intermediate_size": 53248, "vocab_size": 128256},
    "mixture": {"model_type": "deepseek_v3", "dtype": "bfloat16", "tie_word_embeddings": False}
    | {"hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128}
    | {"intermediate_size": 18432, "moe_intermediate_size": 2048, "vocab_size": 129280}
    | {"n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8}
    | {"first_k_dense_replace": 3, "q_lora_rank": 1536, "kv_lora_rank": 512}
    | {"qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128},
}
"""As their config.json says; the mixture has the shapes of DeepSeek-V3, stored in bfloat16."""

SPEC = JobSpec.model_validate(
    {
        "model": {"source": "local", "path": "/model"},
        "calibration": {
            "data": {"source": "local", "path": "/text"},
            "sequences": 128,
            "sequence_length": 2048,
        },
        "targets": [{"keep": 0.8}],
        "evaluation": {"decode_tokens": 0},
    }
)

STEPS = (Step.CALIBRATE, Step.SOLVE, Step.ASSEMBLE, Step.EVALUATE)
SHAPES = [
    "model",
    "parameters",
    "in blocks' layers",
    "largest block",
    "its statistics",
    "all",
    "solutions",
]
RESOURCES = ["model", "GPUs", "loaded", "sent", "GPU", "host", "files", "GPU, evaluate", "too much"]


def cluster(gpus: int) -> Cluster:
    """Machines of eight GPUs in the manner of an H100 (SXM)."""
    return replace(GPU, workers=gpus, workers_per_machine=min(gpus, 8))


def main() -> None:
    print(report())


def report() -> str:
    """All tables, in Markdown."""
    models = {name: model_shapes(config) for name, config in CONFIGURATIONS.items()}
    jobs = [
        (name, gpus, step_costs(model, SPEC, cluster(gpus)))
        for name, model in models.items()
        for gpus in (1, 8, 64)
    ]
    return "\n\n".join(
        [
            _table(
                SHAPES,
                (_shapes(name, model) for name, model in models.items()),
            ),
            _table(
                ("model", "GPUs", *STEPS, "sum"),
                (_times(name, gpus, costs) for name, gpus, costs in jobs),
            ),
            _table(
                RESOURCES,
                (_resources(name, gpus, costs) for name, gpus, costs in jobs),
            ),
        ]
    )


def _shapes(name: str, model: Model) -> list[str]:
    statistics = [4 * block_statistics(block, SPEC.method) for block in model.blocks]
    solutions = sum(
        group.copies * solution_bytes(layer, SPEC.method, model.stored_bytes)
        for block in model.blocks
        for group in block.groups
        for layer in group.layers
    )
    largest = max(block.parameters for block in model.blocks) * model.stored_bytes
    counts = [f"{count / 1e9:.1f} G" for count in (model.parameters, model.linear)]
    return [name, *counts, *map(_bytes, (largest, max(statistics), sum(statistics), solutions))]


def _times(name: str, gpus: int, costs: Mapping[Step, Cost]) -> list[str]:
    """The time of each step, with the resource that it waits for."""
    seconds = {step: costs[step].seconds(cluster(gpus)) for step in costs}
    slowest = {step: max(times, key=lambda each: times[each]) for step, times in seconds.items()}
    total = sum(cost.whole_seconds(cluster(gpus)) for cost in costs.values())
    cells = [f"{_time(seconds[step][slowest[step]])} {slowest[step]}" for step in STEPS]
    return [name, str(gpus), *cells, _time(total)]


def _resources(name: str, gpus: int, costs: Mapping[Step, Cost]) -> list[str]:
    """Traffic and memory while calibrating and solving; the host's and the files' by machine."""
    sweeping, used = costs[Step.CALIBRATE] + costs[Step.SOLVE], cluster(gpus)
    together = used.workers_per_machine
    exceeded = sweeping.exceeded(used)
    exceeded += [f"{each}, evaluate" for each in costs[Step.EVALUATE].exceeded(used)]
    return [
        name,
        str(gpus),
        _bytes(sweeping.loaded),
        _bytes(sweeping.network_moved),
        _bytes(sweeping.device_held),
        _bytes(sweeping.host_held * together),
        _bytes(sweeping.files_held * together),
        _bytes(costs[Step.EVALUATE].device_held),
        "; ".join(exceeded) or "-",
    ]


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _bytes(count: float) -> str:
    return f"{count / 1e12:.1f} TB" if count >= 1e12 else f"{count / 1e9:.3g} GB"


def _time(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"


if __name__ == "__main__":
    main()

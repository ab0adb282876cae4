"""What a job says of its results: the JSON report, and the model card of each artifact.

Size is always said three ways: the fraction of the compressible linear parameters kept, the
fraction of the whole model's parameters, and bytes on disk. Pure functions on plain data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.jobs import Job
from service.spec import Target
from workers.checkpoint_writer import CheckpointSize
from workers.compression.allocation import LayerOptions, Ranks, total_cost, total_error
from workers.compression.layers import LinearLayer
from workers.evaluation.text import TextLoss
from workers.texts import Texts
from workers.worker import ModelSummary

FORMAT = 1


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one model."""

    losses: Mapping[str, TextLoss]  # by dataset
    decode_tokens_per_second: float | None


@dataclass(frozen=True)
class TargetResult:
    """One artifact: what was asked for and what came of it."""

    target: Target
    ranks: Ranks
    size: CheckpointSize
    evaluation: Evaluation | None


def job_report(
    job: Job,
    model: ModelSummary,
    options: Sequence[LayerOptions],
    texts: Texts,
    calibration_loss: float,
    dense: Evaluation | None,
    results: Sequence[TargetResult],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The whole job in one JSON document; `calibration_loss` is nats per predicted token."""
    spec = job.spec
    documents = {text.name: text.documents for text in texts.evaluation}
    length = spec.calibration.sequence_length
    return {
        "format": FORMAT,
        "job": {"id": job.id, "name": job.name},
        "model": {
            "source": spec.model.model_dump(mode="json"),
            "architecture": model.architecture,
            "parameters": model.parameters,
            "linear_parameters": sum(layer.dense_cost for layer in options),
            "bytes": model.bytes,
        },
        "method": spec.method,
        "allocation": spec.allocation,
        "calibration": {
            "sequences": len(texts.calibration),
            "sequence_length": length,
            "tokens": len(texts.calibration) * length,
            "documents": texts.calibration_documents,
            "skipped_files": len(texts.skipped_files),
            "loss": calibration_loss,
        },
        "evaluation": {"dense": dense and _measured(dense, documents)},
        "targets": [_target(result, model, options, documents) for result in results],
        "left_dense": [
            {"name": name, "reason": "outside the transformer blocks"} for name in model.left_dense
        ],
        "seconds": dict(seconds),
    }


_CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [eigenpress, low-rank]
---

# {architecture}, compressed to {linear:.1%} of its linear parameters

Made by Eigenpress with the method `{method}` and `{allocation}` allocation. It keeps
{linear:.1%} of the compressible linear parameters and {whole:.1%} of all parameters, and its
weights take {bytes:,} bytes.
{perplexities}
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("path/to/this/folder", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder", trust_remote_code=True)
```

`report.json` has every layer's rank and how all of this was measured. The licence and the terms
of use are those of the model that it was made from.
"""


def model_card(report: Mapping[str, Any], name: str) -> str:
    """The artifact's README.md: what it is, what it keeps, what that costs, how to load it."""
    target = next(target for target in report["targets"] if target["name"] == name)
    return _CARD.format(
        architecture=report["model"]["architecture"],
        method=report["method"],
        allocation=report["allocation"],
        linear=target["size"]["linear_fraction"],
        whole=target["size"]["model_fraction"],
        bytes=target["size"]["bytes"],
        perplexities=_perplexity_table(report["evaluation"]["dense"], target),
    )


def _perplexity_table(dense: Mapping[str, Any] | None, target: Mapping[str, Any]) -> str:
    if dense is None:
        return ""
    rows = [
        f"| {text} | {_number(before)} | {_number(target['perplexity'][text])} |"
        for text, before in dense["perplexity"].items()
    ]
    return "\n".join(["", "| text | dense perplexity | compressed |", "|---|---|---|", *rows, ""])


def _number(measured: Mapping[str, Any]) -> str:
    perplexity = measured["perplexity"]
    return "beyond measure" if perplexity is None else f"{perplexity:.3f}"


def _target(
    result: TargetResult,
    model: ModelSummary,
    options: Sequence[LayerOptions],
    documents: Mapping[str, int],
) -> dict[str, Any]:
    dense_cost = sum(layer.dense_cost for layer in options)
    kept = total_cost(options, result.ranks)
    energy = math.fsum(float(layer.spectrum.sum()) for layer in options)
    measured = (
        _measured(result.evaluation, documents)
        if result.evaluation
        else {"perplexity": None, "decode_tokens_per_second": None}
    )
    shapes = {layer.name: layer for layer in model.layers}
    return {
        "name": result.target.name,
        "keep": result.target.keep,
        "scope": result.target.scope,
        "size": {
            "linear_fraction": kept / dense_cost,
            "model_fraction": result.size.parameters / model.parameters,
            "bytes": result.size.bytes,
            "linear_parameters": kept,
            "parameters": result.size.parameters,
        },
        "dropped_energy_fraction": _ratio(total_error(options, result.ranks), energy),
        **measured,
        "layers": [_layer(shapes[layer.name], layer, result.ranks) for layer in options],
    }


def _layer(shape: LinearLayer, options: LayerOptions, ranks: Ranks) -> dict[str, Any]:
    rank = ranks[options.name]
    return {
        "name": options.name,
        "out_features": shape.out_features,
        "in_features": shape.in_features,
        "rank": rank,
        "parameters": options.cost(rank),
        "dropped_energy_fraction": _ratio(options.error(rank), float(options.spectrum.sum())),
    }


def _measured(evaluation: Evaluation, documents: Mapping[str, int]) -> dict[str, Any]:
    return {
        "perplexity": {
            name: {
                # JSON has no infinity: null says that the model is lost beyond measure.
                "perplexity": loss.perplexity if math.isfinite(loss.perplexity) else None,
                "tokens": loss.tokens,
                "sequences": loss.sequences,
                "documents": documents[name],
            }
            for name, loss in evaluation.losses.items()
        },
        "decode_tokens_per_second": evaluation.decode_tokens_per_second,
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0

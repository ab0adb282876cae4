"""The results of a job: the JSON report, and the model card of each artifact.

They give every size in three ways: the fraction of the compressible linear parameters kept, the
fraction of the whole model's parameters, and bytes on disk. Pure functions on plain data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from service.domain.costs.shapes import NUMBER_BYTES
from service.domain.job import Job
from service.domain.spec.targets import Target
from service.report.loading import Loading, is_low_rank
from service.report.metadata import card_metadata
from workers.actors.replies import ModelSummary
from workers.artifact.size import CheckpointSize
from workers.attempt.course import RecoveredTarget
from workers.attempt.probes import Probe
from workers.attempt.text_usage import text_warnings
from workers.compression.candidates import (
    BYTES_OF_16_BITS,
    Forms,
    LayerCandidates,
    as_cut,
    rank_of,
    total_bytes,
    total_cost,
    total_error,
    width_of,
)
from workers.compression.shapes import LinearLayer
from workers.evaluation.estimates import Estimate
from workers.evaluation.losses import TextLoss
from workers.evaluation.scores import Scores
from workers.proof.result import Proof
from workers.text.texts import Texts

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1

NO_VERSIONS: Mapping[str, str] = MappingProxyType({})

MAX_SPECTRUM_POINTS = 64
MAX_SPECTRA_POINTS = 32_768
"""The limits for one layer and for all together; a mixture of experts has thousands of layers."""

MEASURES = ("perplexity", "accuracy", "tasks", "decode_tokens_per_second", "continuations")

FOLDER = "path/to/this/folder"
"""In the commands of a card."""

UNREACHED = "no calibration token reached it"
"""Why an expert of a mixture stays dense."""


@dataclass(frozen=True)
class Evaluation:
    """The measurements of one model."""

    losses: Mapping[str, TextLoss]  # by dataset
    scores: Mapping[str, Scores]  # by task
    decode_tokens_per_second: float | None
    continuations: Sequence[str] = ()  # by prompt


@dataclass(frozen=True)
class TargetResult:
    """One artifact: the target, and its result."""

    target: Target
    forms: Forms
    size: CheckpointSize
    proof: Proof
    evaluation: Evaluation | None
    recovery: RecoveredTarget | None = None


def job_report(
    job: Job,
    model: ModelSummary,
    options: Sequence[LayerCandidates],
    texts: Texts,
    calibration_loss: float,
    idle_shares: Sequence[float],
    dense: Evaluation | None,
    results: Sequence[TargetResult],
    probes: Sequence[Probe],
    seconds: Mapping[str, float],
    versions: Mapping[str, str] = NO_VERSIONS,
) -> dict[str, Any]:
    """The report of the whole job; `calibration_loss` is in nats per predicted token.

    `idle_shares` has by worker the share of calibrating and solving in which it had nothing to do.
    """
    spec = job.spec
    dtype = model.artifact_dtype(spec.dtype)
    documents = {text.name: text.documents for text in texts.evaluation}
    length = spec.calibration.sequence_length
    return {
        "format": FORMAT,
        "job": {
            "id": job.id,
            "name": job.name,
            "specification": spec.model_dump(mode="json", exclude_defaults=True),
        },
        "model": {
            "source": spec.model.model_dump(mode="json"),
            "card": model.card.known(),
            "architecture": model.architecture,
            "parameters": model.parameters,
            "linear_parameters": sum(layer.dense_cost for layer in options),
            "unfused": model.unfused,
            "source_format": model.source_format,
            "source_bytes": model.source_bytes,
            "dtype": model.dtype,
            "bytes": model.bytes,
            "dense_bytes": model.parameters * NUMBER_BYTES[dtype],
        },
        "dtype": dtype,
        "method": spec.method,
        "allocation": spec.allocation,
        "mixed_precision": spec.mixed_precision,
        "calibration": {
            "sequences": len(texts.calibration),
            "sequence_length": length,
            "tokens": len(texts.calibration) * length,
            "documents": texts.calibration_documents,
            "skipped_files": len(texts.skipped_files),
            "loss": calibration_loss,
            "idle_shares": [round(share, 4) for share in idle_shares],
        },
        "texts": [asdict(usage) for usage in texts.usage],
        "warnings": [warning.message for warning in text_warnings(texts)],
        "evaluation": {
            "dense": dense and _measured(dense, None, documents),
            "prompts": list(spec.evaluation.prompts),
        },
        "targets": [
            _target(result, model, options, spec.method, dense, documents, probes)
            for result in results
        ],
        "curve": _curve(model, options, dense, results, probes),
        "spectra": _spectra(options),
        "left_dense": [
            {"name": name, "reason": reason}
            for name, reason in (
                *model.left_dense.items(),
                *((each.name, UNREACHED) for each in options if not each.max_rank),
            )
        ],
        "unused_tensors": [
            {"name": name, "in_artifacts": in_artifacts, "reason": reason}
            for in_artifacts, tensors in ((True, model.carried), (False, model.left_out))
            for name, reason in tensors.items()
        ],
        "seconds": dict(seconds),
        "versions": dict(versions),
    }


_CARD = """---
{metadata}
---

# {architecture}, compressed to {headline}

Made by Eigenpress with the method `{method}` and `{allocation}` allocation. It keeps
{linear:.1%} of the compressible linear parameters, {linear_bytes:.1%} of the bytes that they take
with 16 bits each, and {whole:.1%} of all parameters.{embeddings}

Its weights take {bytes:,} bytes. The original is {source}; all of its
parameters in {dtype} would take {dense_bytes:,}.
{measurements}
## Load it

With transformers{needs}:

```python
{python}
```

{vllm}

Loaded in a process of its own, its logits differed by {logit_error:.1g} (relative) from those of
the compressed model in memory, and {same_predictions:.1%} of its predictions were the same.

`report.json` has the rank or the bits of every layer and the details of each measurement. Numbers
after ± are standard errors. Accuracy is the fraction of tokens that were the model's most likely
prediction.
{unused}
The licence and the terms of use of the original model apply.
"""


_EMBEDDINGS = """

The embedding and the output layer have 8 bits. transformers makes both dense at the first forward
pass, as it does with all layers: where they are tied it then holds their weights twice."""


def model_card(report: Mapping[str, Any], name: str) -> str:
    """The artifact's README.md: its size, its quality, and how to load it."""
    target = next(target for target in report["targets"] if target["name"] == name)
    loading = Loading.of(report, target, FOLDER)
    return _CARD.format(
        metadata=card_metadata(report, target),
        architecture=report["model"]["architecture"],
        headline=_headline(target),
        needs=f" and `pip install {loading.packages}`" if loading.packages else "",
        python=loading.python,
        vllm=_vllm(loading),
        source=_source(report["model"]),
        dtype=report["dtype"],
        dense_bytes=report["model"]["dense_bytes"],
        method=report["method"],
        allocation=report["allocation"],
        linear=target["size"]["linear_fraction"],
        linear_bytes=target["size"]["linear_bytes_fraction"],
        whole=target["size"]["model_fraction"],
        embeddings=_EMBEDDINGS if target.get("embedding_bits") == 8 else "",
        bytes=target["size"]["bytes"],
        measurements=_measurement_table(report, target),
        **target["proof"],
        unused=_unused_tensors(report["unused_tensors"]),
    )


def _headline(target: Mapping[str, Any]) -> str:
    """To what the model was compressed."""
    size = target["size"]
    if is_low_rank(target):
        return f"{size['linear_fraction']:.1%} of its linear parameters"
    return f"{size['linear_bytes_fraction']:.1%} of the bytes of its linear layers"


def _source(model: Mapping[str, Any]) -> str:
    kind = "a GGUF file" if model["source_format"] == "gguf" else "safetensors"
    return f"{kind} of {model['source_bytes']:,} bytes"


def _vllm(loading: Loading) -> str:
    """How to serve the artifact with vLLM, or why not."""
    if loading.refusal:
        return loading.refusal
    return "\n".join([f"With vLLM, on {loading.where}:", "", "```sh", *loading.commands, "```"])


def _unused_tensors(tensors: Sequence[Mapping[str, Any]]) -> str:
    """One line for each reason, with the number of its tensors and the name of the first."""
    groups: dict[tuple[bool, str], list[str]] = {}
    for tensor in tensors:
        groups.setdefault((tensor["in_artifacts"], tensor["reason"]), []).append(tensor["name"])
    rows = [
        f"- {len(names)} {'are' if in_artifacts else 'are not'} in this artifact, such as "
        f"`{names[0]}`: {reason}."
        for (in_artifacts, reason), names in groups.items()
    ]
    heading = "The original checkpoint has tensors that the model does not use:"
    return "\n".join(["", heading, "", *rows, ""]) if rows else ""


def _measurement_table(report: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    dense = report["evaluation"]["dense"]
    if dense is None:
        return ""
    rows = [
        f"| {measure} on {text} | {_number(before, measure)} | {_number(after, measure)} |"
        for measure in ("perplexity", "accuracy")
        for text, before in dense[measure].items()
        for after in [target[measure][text]]
    ]
    rows += [
        f"| {metric} on {task} | {_number(before, 'value')} | {_number(after, 'value')} |"
        for task, scored in dense["tasks"].items()
        for metric, before in scored["metrics"].items()
        for after in [target["tasks"][task]["metrics"][metric]]
    ]
    heading = f"| measured | dense, {report['model']['dtype']} | compressed, {report['dtype']} |"
    return "\n".join(["", heading, "|---|---|---|", *rows, ""])


def _number(measured: Mapping[str, Any], name: str) -> str:
    value, error = measured[name], measured["standard_error"]
    if value is None:
        return "overflow"
    return f"{value:.3f}" if error is None else f"{value:.3f} ± {error:.3f}"


def _target(
    result: TargetResult,
    model: ModelSummary,
    options: Sequence[LayerCandidates],
    method: str,
    dense: Evaluation | None,
    documents: Mapping[str, int],
    probes: Sequence[Probe],
) -> dict[str, Any]:
    dense_cost = sum(layer.dense_cost for layer in options)
    kept = total_cost(options, result.forms)
    stored = total_bytes(options, result.forms)
    energy = math.fsum(float(layer.spectrum.sum()) for layer in options)
    error = total_error(options, result.forms)
    measured = (
        _measured(result.evaluation, dense, documents)
        if result.evaluation
        else dict.fromkeys(MEASURES)
    )
    shapes = {layer.name: layer for layer in model.layers}
    return {
        "name": result.target.name,
        **result.target.model_dump(mode="json"),
        "size": {
            "linear_fraction": kept / dense_cost,
            "model_fraction": result.size.parameters / model.parameters,
            "bytes": result.size.bytes,
            "linear_parameters": kept,
            "linear_bytes": stored,
            "linear_bytes_fraction": stored / (dense_cost * BYTES_OF_16_BITS),
            "parameters": result.size.parameters,
        },
        "dropped_energy_fraction": _ratio(error, energy),
        "predicted_loss_increase": error / 2 if method == "impact-kron" else None,
        "recovery": result.recovery and _recovery(result, result.recovery, probes),
        "proof": asdict(result.proof),
        **measured,
        "layers": [_layer(shapes[layer.name], layer, result.forms) for layer in options],
    }


def _recovery(
    result: TargetResult, recovered: RecoveredTarget, probes: Sequence[Probe]
) -> dict[str, Any]:
    """What the training of a target came to; divergences are per token aside, in nats."""
    step, divergence = recovered.course.best
    cut = as_cut(result.forms)
    before = next((probe.losses for probe in probes if probe.forms == cut), {})
    return {
        **recovered.course.as_data(),
        "kept_step": step,
        "divergence_before": _finite(recovered.course.checks[0][1]),
        "divergence_after": _finite(divergence),
        "perplexity_before": {name: _finite(loss.perplexity) for name, loss in before.items()},
        "seconds": recovered.seconds,
    }


def _curve(
    model: ModelSummary,
    options: Sequence[LayerCandidates],
    dense: Evaluation | None,
    results: Sequence[TargetResult],
    probes: Sequence[Probe],
) -> list[dict[str, Any]]:
    """Every measured size, the smallest first; a probe of a target's size is left out."""
    if dense is None:
        return []
    written = [dict(result.forms) for result in results]
    points = [
        _point("dense", None, dict.fromkeys(written[0]), model, options, dense.losses),
        *(
            _point("target", r.target.name, r.forms, model, options, r.evaluation.losses)
            for r in results
            if r.evaluation
        ),
        *(
            _point("probe", None, probe.forms, model, options, probe.losses)
            for probe in probes
            if probe.forms not in written
        ),
    ]
    return sorted(points, key=lambda point: float(point["linear_fraction"]))


def _point(
    kind: str,
    name: str | None,
    forms: Forms,
    model: ModelSummary,
    options: Sequence[LayerCandidates],
    losses: Mapping[str, TextLoss],
) -> dict[str, Any]:
    linear = sum(layer.dense_cost for layer in options)
    kept = total_cost(options, forms)
    energy = math.fsum(float(layer.spectrum.sum()) for layer in options)
    return {
        "kind": kind,
        "name": name,
        "linear_fraction": kept / linear,
        "model_fraction": (model.parameters - linear + kept) / model.parameters,
        "dropped_energy_fraction": _ratio(total_error(options, forms), energy),
        "perplexity": {dataset: _finite(loss.perplexity) for dataset, loss in losses.items()},
    }


def _spectra(options: Sequence[LayerCandidates]) -> list[dict[str, Any]]:
    """For each layer, the share of its energy that its first `rank` directions keep, and the share
    of the importance that its most important outputs have.
    """
    points = max(2, min(MAX_SPECTRUM_POINTS, MAX_SPECTRA_POINTS // max(1, len(options))))
    return [_spectrum(layer, points) for layer in options]


def _spectrum(layer: LayerCandidates, points: int) -> dict[str, Any]:
    """The kept energy at most at `points` ranks, and as many points of the importance."""
    ranks, kept = _shares(layer.spectrum, points)
    importance = layer.importance
    outputs, held = ([], []) if importance is None else _shares(importance, points)
    return {
        "name": layer.name,
        "energy": float(layer.spectrum.sum()),
        "ranks": ranks,
        "kept": kept,
        "outputs": outputs,
        "importance": held,
    }


def _shares(values: Tensor, points: int) -> tuple[list[int], list[float]]:
    """Counts, a geometric series from 1 to all, and the shares that so many first values have."""
    full, total = len(values), float(values.sum())
    series = {round(full ** (each / (points - 1))) for each in range(points)}
    counts = sorted(series) if full else []
    sums = values.cumsum(0)
    return counts, [round(_ratio(float(sums[count - 1]), total), 6) for count in counts]


def _layer(shape: LinearLayer, options: LayerCandidates, forms: Forms) -> dict[str, Any]:
    form = forms[options.name]
    return {
        "name": options.name,
        "out_features": shape.out_features,
        "in_features": shape.in_features,
        "rank": rank_of(form),
        "bits": width.bits if (width := width_of(form)) else None,
        "parameters": options.cost(form),
        "bytes": options.nbytes(form),
        "dropped_energy_fraction": _ratio(options.error(form), float(options.spectrum.sum())),
    }


def _measured(
    evaluation: Evaluation, dense: Evaluation | None, documents: Mapping[str, int]
) -> dict[str, Any]:
    """The measurements, with the paired differences from the dense model if it is given."""
    perplexity, accuracy = {}, {}
    for name, loss in evaluation.losses.items():
        perplexity[name] = {
            **_estimate("perplexity", loss.estimated_perplexity()),
            "tokens": loss.tokens,
            "sequences": loss.sequences,
            "documents": documents[name],
        }
        accuracy[name] = _estimate("accuracy", loss.estimated_accuracy())
        if dense is not None:
            before = dense.losses[name]
            perplexity[name] |= _estimate("ratio", loss.perplexity_ratio(before), "ratio_")
            difference = loss.accuracy_difference(before)
            accuracy[name] |= _estimate("difference", difference, "difference_")
    return {
        "perplexity": perplexity,
        "accuracy": accuracy,
        "tasks": {
            name: _task(scores, dense.scores[name] if dense else None)
            for name, scores in evaluation.scores.items()
        },
        "decode_tokens_per_second": evaluation.decode_tokens_per_second,
        "continuations": list(evaluation.continuations),
    }


def _task(scores: Scores, dense: Scores | None) -> dict[str, Any]:
    metrics = {name: _estimate("value", estimate) for name, estimate in scores.estimates().items()}
    for name, estimate in scores.differences(dense).items() if dense else ():
        metrics[name] |= _estimate("difference", estimate, "difference_")
    return {"problems": scores.problems, "metrics": metrics}


def _estimate(name: str, estimate: Estimate, prefix: str = "") -> dict[str, float | None]:
    error = estimate.standard_error
    return {
        name: _finite(estimate.value),
        f"{prefix}standard_error": None if error is None else _finite(error),
    }


def _finite(number: float) -> float | None:
    """JSON has no infinity, so null stands for a number that overflows."""
    return number if math.isfinite(number) else None


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0

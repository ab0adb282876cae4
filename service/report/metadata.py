"""The metadata of a model card, which the hub reads: what it was made of, and what was measured.

See https://huggingface.co/docs/hub/model-cards. The hub has no relation for a model of lower rank,
so `base_model_relation` is given for integers alone. The licence is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub import EvalResult, ModelCardData

from service.report.fields import Part, at
from service.report.loading import is_low_rank

TASK = "text-generation"


def card_metadata(report: Part, target: Part) -> str:
    """The metadata of a target's card: YAML, without the lines around it."""
    source, low_rank = at(report, "model", "source") or {}, is_low_rank(target)
    data = ModelCardData(
        base_model=source.get("id") if source.get("source") == "hub" else None,
        base_model_relation=None if low_rank else "quantized",
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["eigenpress", "low-rank" if low_rank else "compressed-tensors"],
        model_name=f"{at(report, 'model', 'architecture')} {target['name']}",
        eval_results=list(_results(target)) or None,
    )
    text: str = data.to_yaml()
    return text.rstrip()


def _results(target: Part) -> Iterator[EvalResult]:
    for measure in ("perplexity", "accuracy"):
        for text, measured in (target.get(measure) or {}).items():
            if measured[measure] is not None:
                yield _result(text, measure, measured[measure])
    for task, scored in (target.get("tasks") or {}).items():
        for metric, measured in scored["metrics"].items():
            if measured["value"] is not None:
                yield _result(task, metric, measured["value"])


def _result(dataset: str, metric: str, value: float) -> EvalResult:
    return EvalResult(
        task_type=TASK,
        dataset_type=dataset,
        dataset_name=dataset,
        metric_type=metric,
        metric_value=value,
    )

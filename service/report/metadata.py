"""The metadata of a model card, which the hub reads: what it was made of, and what was measured.

See https://huggingface.co/docs/hub/model-cards. The hub has no relation for a model of lower rank,
so `base_model_relation` is given for integers alone. Licence and bases are those that the source
itself names; a source on the hub is the base. The dense model's results are left out of
`model-index`: the hub takes everything there for results of the model that has the card.
"""

from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub import EvalResult, ModelCardData

from service.report.fields import Part, at
from service.report.loading import is_low_rank

TASK = "text-generation"


def card_metadata(report: Part, target: Part) -> str:
    """The metadata of a target's card: YAML, without the lines around it."""
    card, low_rank = at(report, "model", "card") or {}, is_low_rank(target)
    bases = _bases(report)
    data = ModelCardData(
        base_model=bases[0] if len(bases) == 1 else bases or None,
        base_model_relation="quantized" if bases and not low_rank else None,
        license=card.get("license"),
        license_name=card.get("license_name"),
        license_link=card.get("license_link"),
        library_name="transformers",
        pipeline_tag=TASK,
        tags=["eigenpress", "low-rank" if low_rank else "compressed-tensors"],
        model_name=f"{_name(report)} {target['name']}",
        eval_results=list(_results(target)) or None,
    )
    text: str = data.to_yaml()
    return text.rstrip()


def _bases(report: Part) -> list[str]:
    """The ids on the hub of what the artifact was made of, as far as they are known."""
    source = at(report, "model", "source") or {}
    if source.get("source") == "hub":
        return [source["id"]]
    return list(at(report, "model", "card", "base_model") or ())


def _name(report: Part) -> str:
    """The source's name, or the class of its model."""
    source = at(report, "model", "source") or {}
    of_hub = str(source["id"]).rpartition("/")[2] if source.get("source") == "hub" else None
    return str(of_hub or at(report, "model", "card", "name") or at(report, "model", "architecture"))


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

"""The hub's own library reads a card's metadata, whatever names are in it."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard

from service.report.metadata import card_metadata
from tests.unit.service.report.test_view import HOSTILE, a_report


def card_of(report: dict[str, Any]) -> Any:
    card = ModelCard(f"---\n{card_metadata(report, report['targets'][0])}\n---\n# A model\n")
    return card.data


def test_the_hub_reads_what_was_measured() -> None:
    data = card_of(a_report())
    assert (data.library_name, data.pipeline_tag) == ("transformers", "text-generation")
    assert data.tags == ["eigenpress", "low-rank"]
    assert data.model_name == "LlamaForCausalLM keep-0.6"
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == (
        "held-out",
        "perplexity",
        14.7,
    )
    assert data.base_model is None
    assert "base_model_relation" not in data.to_dict()


def test_the_base_is_named_if_the_hub_has_it() -> None:
    report = a_report()
    report["model"]["source"] = {"source": "hub", "id": "team/model", "revision": "0" * 40}
    for layer in report["targets"][0]["layers"]:
        layer["rank"], layer["bits"] = None, 4
    data = card_of(report)
    assert (data.base_model, data.base_model_relation) == ("team/model", "quantized")
    assert data.tags == ["eigenpress", "compressed-tensors"]


@pytest.mark.parametrize("text", [*HOSTILE, "---\nlicense: mit", "a: b", "\x00"])
def test_a_name_stays_a_name(text: str) -> None:
    data = card_of(a_report(text=text, name=text))
    assert data.license is None
    assert text.isprintable() is False or data.eval_results[0].dataset_name == text

"""The hub's own library reads a card's metadata, whatever names are in it."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

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


def test_the_source_s_own_words_are_repeated_and_nothing_is_added() -> None:
    report = a_report()
    report["model"]["card"] = {
        "name": "Smol 1",
        "license": "other",
        "license_name": "smol-licence",
        "license_link": "LICENSE",
        "base_model": ["team/base", "team/other"],
    }
    data = card_of(report)
    assert (data.license, data.license_name, data.license_link) == (
        "other",
        "smol-licence",
        "LICENSE",
    )
    assert data.base_model == ["team/base", "team/other"]
    assert data.model_name == "Smol 1 keep-0.6"
    report["model"]["card"] = {}
    assert {"license", "license_name", "license_link", "base_model"}.isdisjoint(
        card_of(report).to_dict()
    )


def test_a_source_on_the_hub_is_the_base_itself() -> None:
    report = a_report()
    report["model"]["source"] = {"source": "hub", "id": "team/model", "revision": "0" * 40}
    report["model"]["card"] = {"license": "mit", "base_model": ["team/base-of-it"]}
    data = card_of(report)
    assert (data.base_model, data.license) == ("team/model", "mit")
    assert data.model_name == "model keep-0.6"


def test_the_hub_s_parser_takes_all_results_for_the_model_s_own() -> None:
    """So the dense model's are left out of the metadata; the card's table has them."""
    dense = {
        "task": {"type": "text-generation"},
        "dataset": {"type": "held-out", "name": "held-out"},
        "metrics": [{"type": "perplexity", "value": 10.5}],
    }
    index = [{"name": "dense", "results": [dense]}, {"name": "keep-0.6", "results": [dense]}]
    name, results = model_index_to_eval_results(index)
    assert (name, len(results)) == ("keep-0.6", 2)
    report = a_report()
    found = card_of(report).eval_results
    dense_values = {each["perplexity"] for each in dense_of(report).values()}
    assert found
    assert dense_values.isdisjoint(each.metric_value for each in found)


def dense_of(report: dict[str, Any]) -> dict[str, Any]:
    perplexity: dict[str, Any] = report["evaluation"]["dense"]["perplexity"]
    return perplexity


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_source_says_stays_text(text: str) -> None:
    report = a_report()
    report["model"]["card"] = {"license": text, "license_name": text, "name": text}
    data = card_of(report)
    assert text.isprintable() is False or (data.license, data.license_name) == (text, text)
    assert data.tags == ["eigenpress", "low-rank"]


@pytest.mark.parametrize("text", [*HOSTILE, "---\nlicense: mit", "a: b", "\x00"])
def test_a_name_stays_a_name(text: str) -> None:
    data = card_of(a_report(text=text, name=text))
    assert data.license is None
    assert text.isprintable() is False or data.eval_results[0].dataset_name == text

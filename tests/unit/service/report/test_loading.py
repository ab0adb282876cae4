"""How to load and to serve an artifact; the model card's words are tested with the card."""

from __future__ import annotations

import pytest

from service.report.loading import PACKAGES, Loading
from tests.unit.service.report.test_view import a_report


def test_low_rank_needs_trust_and_no_packages() -> None:
    report = a_report()
    found = Loading.of(report, report["targets"][0], "./keep-0.6")
    assert found.packages == ""
    assert 'AutoModelForCausalLM.from_pretrained("./keep-0.6", trust_remote_code=True)' in (
        found.python
    )
    assert compile(found.python, "card", "exec")
    assert found.commands[0] == "vllm serve ./keep-0.6 --trust-remote-code"
    assert found.refusal == ""


@pytest.mark.parametrize(("precisions", "commands"), [("vllm", 1), ("vllm-cpu", 2)])
def test_integers_of_vllm_need_packages_and_no_trust(precisions: str, commands: int) -> None:
    target = {"name": "x", "precisions": precisions, "layers": [{"rank": None, "bits": 4}]}
    found = Loading.of({}, target, "x")
    assert found.packages == PACKAGES
    assert "trust" not in found.python
    assert len(found.commands) == commands
    assert found.where


def test_what_vllm_does_not_load_has_no_command_but_a_reason() -> None:
    low_rank = {"name": "x", "layers": [{"rank": 1}]}
    found = Loading.of({"model": {"unfused": True}}, low_rank, "x")
    assert (found.commands, found.where) == ((), "")
    assert "eigenpress expand" in found.refusal


def test_a_report_may_lack_fields() -> None:
    assert Loading.of({}, {"name": "x"}, "x").commands

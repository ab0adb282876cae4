"""The page of a new job, as HTML."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient
from markupsafe import escape

from api.pages.spec_form import write
from service.domain.job import DEFAULT_TENANT
from service.domain.spec.calibration import Recovery
from service.domain.spec.job import JobSpec
from service.errors import StorageUnavailable
from service.store.store import Store
from tests.unit.api.pages.conftest import PAYLOADS, Make


@pytest.fixture
def form(job_body: dict[str, Any]) -> dict[str, str]:
    return write(job_body) | {"once": "0" * 32}


def error_at(text: str, name: str) -> str:
    (found,) = re.findall(rf'data-error="{re.escape(name)}">([^<]*)</small>', text)
    return str(found)


def test_the_empty_form_has_the_defaults_of_the_specification(client: TestClient) -> None:
    text = client.get("/new").text
    for name, default in (("calibration.sequences", 128), ("evaluation.decode_tokens", 32)):
        (field,) = re.findall(rf'<input id="{re.escape(name)}".*?>', text, re.DOTALL)
        assert f'placeholder="{default}"' in field
        assert 'value=""' in field
    assert '<option value="impact-kron" selected>' in text
    assert not re.search(r"<details[^>]* open", text.partition("<aside")[0])


def test_a_form_is_submitted_once(
    client: TestClient, store: Store, form: dict[str, str], job_body: dict[str, Any]
) -> None:
    answers = [client.post("/new", data=form, follow_redirects=False) for _ in range(2)]
    (job,) = store.users(DEFAULT_TENANT).list_jobs(limit=9)
    assert {each.status_code for each in answers} == {303}
    assert {each.headers["Location"] for each in answers} == {f"/jobs/{job.id}"}
    assert job.spec == JobSpec.model_validate(job_body)


def test_errors_stand_at_their_fields_and_what_was_typed_stays(
    client: TestClient, store: Store, form: dict[str, str]
) -> None:
    wrong = {
        "targets.0.size.keep": "1.5",
        "calibration.sequences": "many",
        "labels": "Team",
        "model.source": "hub",
        "model.hub.id": "a b",
    }
    answer = client.post("/new", data=form | wrong)
    assert answer.status_code == 422
    text = answer.text
    assert "less than 1" in error_at(text, "targets.0.size.keep")
    assert "integer" in error_at(text, "calibration.sequences")
    assert "NAME=VALUE" in error_at(text, "labels")
    assert error_at(text, "model.hub.id")
    assert error_at(text, "model.hub.revision") == "Field required"
    assert error_at(text, "model.local.path") == ""
    assert 'value="1.5"' in text
    assert text.count('aria-invalid="true"') == 5
    assert '<details id="calibration-group" class="group" open>\n    <summary>Calibration' in text
    assert store.users(DEFAULT_TENANT).list_jobs(limit=9) == []


def test_a_recovery_is_taken_over_from_another_job(
    client: TestClient, store: Store, form: dict[str, str]
) -> None:
    client.post("/new", data=form | {"recovery.use": "on", "calibration.sequences": "8"})
    (job,) = store.users(DEFAULT_TENANT).list_jobs(limit=9)
    assert isinstance(job.spec, JobSpec)
    assert job.spec.recovery == Recovery()
    text = client.get(f"/new?from={job.id}").text
    assert '<details id="recovery-group" class="group" open>\n    <summary>Recovery' in text
    assert 'name="recovery.use" value="on" checked' in text


def test_why_a_recovery_is_refused_stands_in_its_group(
    client: TestClient, form: dict[str, str]
) -> None:
    text = client.post(
        "/new", data=form | {"recovery.use": "on", "calibration.sequences": "2"}
    ).text
    assert "needs two batches" in error_at(text, "recovery")
    assert '<details id="recovery-group" class="group" open>\n    <summary>Recovery' in text


def test_a_refusal_of_the_checks_stands_at_its_field(
    client: TestClient, form: dict[str, str]
) -> None:
    answer = client.post("/new", data=form | {"model.local.path": "/etc"})
    assert answer.status_code == 422
    assert error_at(answer.text, "model") or error_at(answer.text, "model.local.path")


def test_an_outage_is_said_above_the_form(
    client: TestClient, storage: Any, form: dict[str, str]
) -> None:
    storage.trouble = StorageUnavailable("the bucket is away")
    answer = client.post("/new", data=form)
    assert answer.status_code == 503
    assert "the bucket is away" in answer.text
    assert f'value="{form["model.local.path"]}"' in answer.text


def test_another_job_is_a_template(client: TestClient, make: Make) -> None:
    task = {"kind": "lm_eval", "name": "arc", "tasks": ["arc_easy"]}
    job_id = make(labels={"team": "ml"}, method="svd", evaluation={"sequences": 7, "tasks": [task]})
    text = client.get(f"/new?from={job_id}").text
    assert '<option value="svd" selected>' in text
    assert re.search(r'id="evaluation.sequences" name="evaluation.sequences" value="7"', text)
    assert "team=ml</textarea>" in text
    assert "arc_easy" in text
    assert client.get("/new?from=job-" + 26 * "0").status_code == 404


def test_rows_are_added_and_removed(client: TestClient, form: dict[str, str]) -> None:
    more = client.post("/new/rows", data=form | {"add": "targets"}).text
    assert 'name="targets.2.size.keep"' in more
    assert re.search(r'name="targets.2.kind" value="size" checked autofocus', more)
    less = client.post("/new/rows", data=form | {"remove": "targets.0"}).text
    assert 'name="targets.0.size.keep"' not in less
    assert 'name="targets.1.size.keep"' in less
    texts = client.post("/new/rows", data=form | {"add": "evaluation.datasets"}).text
    assert 'name="evaluation.datasets.0.name"' in texts


def test_the_estimate_follows_the_form(client: TestClient, form: dict[str, str]) -> None:
    text = client.post("/new/estimate", data=form).text
    assert "What is not known" in text
    assert "eigenpress submit" in text
    assert text.count('hx-swap-oob="true"') == 2
    wrong = client.post("/new/estimate", data=form | {"targets.1.size.keep": "2"}).text
    assert 'data-problem="targets.1.size.keep"' in wrong
    refused = client.post("/new/estimate", data=form | {"model.local.path": "/nowhere"}).text
    assert re.search(r'data-problem="model', refused)


def test_an_estimate_of_an_unfinished_form_asks_for_the_rest(client: TestClient) -> None:
    text = client.post("/new/estimate", data={"targets.0.size.keep": "0.5"}).text
    assert "<code>model.path</code>, <code>calibration.data.path</code>" in text
    assert "data-problem" not in text
    tried = client.post("/new/estimate", data={"targets.0.size.keep": "0.5", "tried": "yes"}).text
    assert 'data-problem="model.local.path" data-words="Field required"' in tried


def test_what_is_typed_is_only_text(client: TestClient, form: dict[str, str]) -> None:
    names = ("model.local.path", "name", "labels", "more", "targets.0.size.keep", "method", "once")
    for payload in PAYLOADS:
        sent = form | dict.fromkeys(names, payload)
        for path in ("/new", "/new/rows", "/new/estimate"):
            text = client.post(path, data=sent).text
            assert payload == escape(payload) or payload not in text
            assert str(escape(payload)) in text


def test_a_huge_form_is_refused(client: TestClient) -> None:
    assert client.post("/new", data={"name": 70_000 * "x"}).status_code == 413
    many = {f"field-{number}": "1" for number in range(2001)}
    assert client.post("/new", data=many).status_code == 400

"""A form says a job's specification, and what it says is read back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.pages import spec_fields
from api.pages.new_form import NewForm, Parsed, Sending, with_row, without_row
from api.pages.spec_form import Json, read, write
from service.cli.job_file import read_job
from service.domain.labels import MAX_VALUE_CHARACTERS
from service.domain.spec.evaluation import HELD_OUT
from service.domain.spec.job import JobSpec
from service.errors import InvalidParameter

HASH = "0123456789abcdef0123456789abcdef01234567"
VALID: Json = {
    "model": {"source": "local", "path": "/models/small"},
    "calibration": {"data": {"source": "local", "path": "/texts"}},
    "targets": [{"keep": 0.8}],
}

texts = st.text(st.characters(categories=("L", "N", "P", "S")), min_size=1, max_size=12)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
fractions = st.floats(0.01, 0.99)
local = st.fixed_dictionaries({"source": st.just("local"), "path": texts})
s3 = st.fixed_dictionaries({"source": st.just("s3"), "uri": st.just("s3://bucket/a b")})
hub = st.fixed_dictionaries(
    {"source": st.just("hub"), "id": st.just("a/b"), "revision": st.just(HASH)}
)
files = st.fixed_dictionaries(
    {}, optional={"pattern": st.sampled_from(["**/*", "*.py"]), "text_field": texts}
)
place = st.one_of(local, s3, hub)
text_place: st.SearchStrategy[Json] = st.one_of(
    st.builds(lambda here, rest: here | rest, place, files),
    st.just({"source": "dataset", "id": "ds-" + 26 * "0"}),
)
size_target = st.fixed_dictionaries(
    {"keep": fractions},
    optional={"scope": st.just("model"), "optimize": st.sampled_from(["size", "speed"])},
)
byte_target = st.fixed_dictionaries(
    {"bytes_fraction": fractions},
    optional={"precisions": st.just("transformers"), "scope": st.just("model")},
) | st.fixed_dictionaries(
    {"bytes": st.integers(1, 10**12), "precisions": st.just("transformers")},
    optional={"embedding_bits": st.sampled_from([8, 16])},
)
quality_target = st.fixed_dictionaries(
    {"max_perplexity_increase": fractions},
    optional={"dataset": st.just(HELD_OUT), "precisions": st.just("vllm")},
)
tasks: st.SearchStrategy[Any] = st.lists(
    st.fixed_dictionaries({"kind": st.just("lm_eval"), "name": names, "tasks": st.just(["arc"])}),
    max_size=1,
)
evaluation_fields: dict[str, st.SearchStrategy[Any]] = {"tasks": tasks}
evaluation: st.SearchStrategy[Json] = st.fixed_dictionaries(
    evaluation_fields,
    optional={
        "sequences": st.integers(1, 100),
        "decode_tokens": st.integers(0, 100),
        "curve": st.lists(fractions, max_size=3),
        "datasets": st.lists(
            st.fixed_dictionaries(
                {"name": names, "data": text_place},
                optional={"sequences": st.none() | st.integers(1, 9)},
            ),
            max_size=2,
            unique_by=lambda each: str(each["name"]),
        ),
    },
)
labels = st.dictionaries(
    st.from_regex(r"[a-z]{1,4}", fullmatch=True),
    st.text(st.characters(categories=("L", "N", "P", "S")), max_size=MAX_VALUE_CHARACTERS),
    max_size=3,
)
specifications = st.fixed_dictionaries(
    {
        "model": place,
        "calibration": st.fixed_dictionaries(
            {"data": text_place},
            optional={"sequences": st.integers(1, 999), "held_out_fraction": fractions},
        ),
        "targets": st.lists(
            st.one_of(size_target, byte_target, quality_target),
            min_size=1,
            max_size=3,
            unique_by=lambda each: str(next(iter(each.items()))),
        ),
        "evaluation": evaluation,
        "labels": labels,
    },
    optional={
        "name": st.none() | names,
        "workers": st.integers(1, 99),
        "recovery": st.fixed_dictionaries({}, optional={"epochs": st.integers(1, 3)}),
        "priority": st.integers(-9, 9),
        "dtype": st.just("bfloat16"),
        "limits": st.fixed_dictionaries({"run_seconds": st.integers(1, 999)}),
    },
)


def as_specification(document: Json) -> JobSpec | None:
    try:
        return JobSpec.model_validate(document)
    except ValueError:  # two targets of one name
        return None


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(document=specifications)
def test_what_a_form_shows_is_read_back(document: Json) -> None:
    spec = as_specification(document)
    if spec is None:
        return
    form = write(spec.model_dump(mode="json", exclude_defaults=True))
    found = read(form)
    assert found.problems == []
    assert JobSpec.model_validate(found.body) == spec
    # A browser sends every field of the form, also those that show a default.
    shown = NewForm(form)
    for each in spec_fields.fields(shown.rows):
        if each.choices and not each.is_optional and not form.get(each.name):
            form[each.name] = spec_fields.text_of(each.default)
    assert JobSpec.model_validate(read(form).body) == spec


@settings(deadline=None, max_examples=30)
@given(document=specifications)
def test_the_commands_send_what_the_form_says(document: Json) -> None:
    spec = as_specification(document)
    if spec is None:
        return
    body = read(write(spec.model_dump(mode="json", exclude_defaults=True))).body
    commands = Sending(body, "http://here").commands
    for name, command in commands.items():
        sent = command.partition("<<'END'\n")[2]
        assert sent.endswith("\nEND")
        assert "\nEND\n" not in sent
        assert _read_file(sent.removesuffix("END"), name) == body


@pytest.mark.parametrize("path", ["0E0", "no", "~", "1_0", "0x1", "2026-11-28", "true", "=", "- a"])
def test_texts_stay_texts_in_a_file(path: str) -> None:
    body = VALID | {"model": {"source": "local", "path": path}}
    command = Sending(body, "http://here").commands["eigenpress"]
    text = command.partition("<<'END'\n")[2].removesuffix("END")
    assert _read_file(text, "eigenpress") == body


def _read_file(text: str, name: str) -> Any:
    if name == "curl":
        return json.loads(text)
    path = Path("job.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *_: text)
        return read_job(path)


def test_a_recovery_is_switched_on_and_off() -> None:
    form = write(VALID) | {"recovery.epochs": "7"}
    assert "recovery" not in read(form).body  # left from before it was switched off
    assert read(form | {spec_fields.RECOVERY: "on"}).body["recovery"] == {"epochs": 7}
    usual = form | {spec_fields.RECOVERY: "on", "recovery.epochs": "1"}
    assert read(usual).body["recovery"] == {}


def test_every_field_of_a_specification_has_one_in_the_form_or_goes_to_the_rest() -> None:
    names = {each.name for each in spec_fields.fields({"targets": [0], "evaluation.datasets": []})}
    assert {"method", "calibration.seed", "evaluation.enabled", "limits.run_seconds"} <= names
    assert not {each for each in names if each.startswith("evaluation.tasks")}
    kept = write(VALID | {"evaluation": {"tasks": [{"kind": "newer"}]}, "unheard_of": 1})
    assert json.loads(kept["more"]) == {
        "evaluation": {"tasks": [{"kind": "newer"}]},
        "unheard_of": 1,
    }


@pytest.mark.parametrize("text", ["abc", "1.5.2", "true"])
def test_what_is_no_number_reaches_the_specification_as_it_is(text: str) -> None:
    form = write(VALID) | {"calibration.sequences": text}
    read_form = read(form)
    (problem,) = Parsed.of(read_form).problems
    assert problem.param == "calibration.sequences"
    assert text in problem.detail


def test_empty_rows_do_not_count_and_errors_find_theirs() -> None:
    form = {
        "targets.0.kind": "size",
        "targets.0.size.keep": " ",
        "targets.3.kind": "quality",
        "targets.3.size.keep": "0.5",  # left from the kind that was chosen before
        "targets.3.quality.max_perplexity_increase": "-1",
    }
    found = read(form)
    assert found.body["targets"] == [{"max_perplexity_increase": -1.0}]
    shown = NewForm(form)
    shown.add(Parsed.of(found).problems, found)
    assert set(shown.errors) == {
        "targets.3.quality.max_perplexity_increase",
        "model.local.path",
        "calibration.data.local.path",
    }


def test_an_error_about_something_larger_stands_at_its_group() -> None:
    shown, found = NewForm(write(VALID)), read(write(VALID))
    assert shown.name_of("targets.0", found) == "targets.0"
    assert shown.name_of("model", found) == "model"
    assert shown.name_of("recovery", found) == "recovery"
    assert shown.name_of("evaluation.tasks.0.data", found) == ""
    assert shown.name_of(None, found) == ""


@pytest.mark.parametrize(
    ("field", "text"),
    [("labels", "team"), ("labels", "Team=ml"), ("more", "{"), ("more", "[1]"), ("more", "null")],
)
def test_what_is_no_label_or_no_object_is_said_at_its_field(field: str, text: str) -> None:
    found = read(write(VALID) | {field: text})
    (problem,) = found.problems
    assert (problem.param, problem.code) == (field, InvalidParameter.code)
    assert Parsed.of(found).spec is None


def test_numbers_that_json_has_not_are_refused() -> None:
    for text in ("nan", "inf", "1e999"):
        found = read(write(VALID) | {"targets.0.size.keep": text})
        assert not math.isfinite(found.body["targets"][0]["keep"])
        assert Parsed.of(found).spec is None


def test_rows_come_and_go() -> None:
    form, row = with_row(write(VALID), "targets")
    assert row == "targets.1"
    assert read(form).body["targets"] == VALID["targets"]
    assert read(without_row(form, "targets.0")).body["targets"] == []
    many = {f"targets.{number}.kind": "size" for number in range(1000)}
    assert len(spec_fields.rows_of(many)["targets"]) == spec_fields.ROWS["targets"]

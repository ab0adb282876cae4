"""A stored specification is read whole or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError
from ray._private.label_utils import validate_label_selector

from service.domain.job import new_job_id
from service.domain.spec.job import JobSpec, Limits
from service.domain.spec.stored import read_stored, read_stored_limits
from service.errors import SpecificationUnknown
from tests.fixtures.jobs import small_spec

JOB = new_job_id()


def stored(*path: str | int, value: object) -> str:
    """The small specification with another value at this place."""
    document: Any = json.loads(small_spec().model_dump_json())
    at = document
    for part in path[:-1]:
        at = at[part]
    at[path[-1]] = value
    return json.dumps(document)


def test_what_this_version_stores_it_reads() -> None:
    text = small_spec().model_dump_json()
    assert read_stored(JOB, text) == small_spec()
    assert read_stored_limits(JOB, text) == Limits()


def test_a_field_that_has_gone_without_effect_is_left_out() -> None:
    text = stored("calibration", "gradient_checkpointing", value=True)
    assert read_stored(JOB, text) == small_spec()


def test_an_older_version_need_not_have_stored_every_field() -> None:
    document = json.loads(small_spec().model_dump_json())
    del document["limits"], document["evaluation"]["tasks"]
    text = json.dumps(document)
    assert read_stored(JOB, text) == small_spec()
    assert read_stored_limits(JOB, text) == Limits()


@pytest.mark.parametrize(
    ("path", "value", "param", "says"),
    [
        (("not_yet",), 1, "not_yet", "does not know the field 'not_yet'"),
        (("evaluation", "not_yet"), None, "evaluation.not_yet", "does not know the field"),
        (("model", "not_yet"), "", "model.not_yet", "does not know the field 'model.not_yet'"),
        (("targets", 0, "not_yet"), 2, "targets.0.not_yet", "does not know the field"),
        (("method",), "newer", "method", "does not know the value \"newer\" of the field 'method'"),
        (("model",), {"source": "ftp"}, "model", "of the field 'model'"),
        (("targets",), [], "targets", "does not know the value \\[\\] of the field 'targets'"),
        (("calibration",), {}, "calibration.data", "needs the field 'calibration.data'"),
    ],
    ids=str,
)
def test_what_this_version_does_not_know_is_refused_by_name(
    path: tuple[str | int, ...], value: object, param: str, says: str
) -> None:
    with pytest.raises(SpecificationUnknown, match=says) as refused:
        read_stored(JOB, stored(*path, value=value))
    assert refused.value.param == param
    assert JOB in refused.value.detail
    assert "newer version" in refused.value.detail
    assert "retry the job" in refused.value.detail
    assert not refused.value.failure().retryable


@pytest.mark.parametrize("value", ["H100", "A100-80G", "NVIDIA_L4.24", "4", "x" * 63])
def test_a_type_of_gpu_is_the_value_of_a_label(value: str) -> None:
    spec = JobSpec.model_validate(
        json.loads(small_spec().model_dump_json()) | {"accelerator_type": value}
    )
    assert spec.accelerator_type == value
    assert validate_label_selector({"ray.io/accelerator-type": value}) is None


@pytest.mark.parametrize(
    "value", ["", "!H100", "in(H100, A100)", "H100 ", "-H100", "H100_", "H100\n", "x" * 64, 100]
)
def test_a_type_of_gpu_is_no_expression(value: object) -> None:
    """Ray would take some of these for operators, and an empty one for any machine."""
    document = json.loads(small_spec().model_dump_json())
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(document | {"accelerator_type": value})
    assert [error["loc"] for error in caught.value.errors()] == [("accelerator_type",)]


def test_a_long_value_is_cut() -> None:
    with pytest.raises(SpecificationUnknown) as refused:
        read_stored(JOB, stored("method", value="x" * 5000))
    assert len(refused.value.detail) < 500


def test_dispatchers_read_the_limits_alone_and_those_strictly() -> None:
    assert read_stored_limits(JOB, stored("not_yet", value=1)) == Limits()
    with pytest.raises(SpecificationUnknown, match=r"'limits\.not_yet'"):
        read_stored_limits(JOB, stored("limits", "not_yet", value=1))


ARRAYS = ["targets", "evaluation.datasets", "evaluation.curve", "evaluation.tasks"]


@pytest.mark.parametrize("field", [*ARRAYS, "evaluation.tasks.0.tasks"])
@pytest.mark.parametrize("item", [{}, 2, "-"], ids=str)
def test_the_items_of_a_long_array_are_not_validated(field: str, item: object) -> None:
    document: Any = json.loads(small_spec().model_dump_json())
    document["evaluation"]["tasks"] = [{"kind": "lm_eval", "name": "harness", "tasks": ["piqa"]}]
    *path, last = field.split(".")
    place = document
    for part in path:
        place = place[int(part) if isinstance(place, list) else part]
    place[last] = [item] * 10_000
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate(document)
    (error,) = refused.value.errors()
    assert (error["type"], error["ctx"]["actual_length"]) == ("too_long", 10_000)

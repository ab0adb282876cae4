"""Code that models write is run only where the operator allows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.domain.spec import JobSpec
from service.errors import CodeExecutionForbidden
from service.inputs.checks import check_allowed, check_tasks
from service.settings import Settings


@pytest.fixture
def spec(job_body: dict[str, Any], text_folder: Path) -> JobSpec:
    data = {"source": "local", "path": str(text_folder)}
    tasks = [
        {"kind": "lm_eval", "name": "harness", "tasks": ["arc_easy"]},
        {"kind": "pass_at_1", "name": "code", "data": data},
    ]
    return JobSpec.model_validate(job_body | {"evaluation": {"tasks": tasks}})


def test_code_is_run_where_it_is_allowed(spec: JobSpec, allowed_root: Path) -> None:
    check_tasks(spec, Settings(allowed_roots=(allowed_root,), allow_code_execution=True))


def test_code_is_refused_elsewhere_and_the_setting_named(spec: JobSpec, allowed_root: Path) -> None:
    with pytest.raises(CodeExecutionForbidden, match="EIGENPRESS_ALLOW_CODE_EXECUTION") as caught:
        check_allowed(spec, Settings(allowed_roots=(allowed_root,)))
    assert caught.value.param == "evaluation.tasks.1"

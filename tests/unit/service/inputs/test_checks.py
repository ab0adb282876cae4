"""Checks of a submission have a time limit, and models' code runs only where it is allowed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any, cast

import pytest

from service.domain.spec.job import JobSpec
from service.domain.tenant import EVERY_PLACE
from service.errors import (
    CodeExecutionForbidden,
    DataInvalid,
    StorageUnavailable,
    SubmissionCheckTimeout,
    UnsupportedLayer,
)
from service.inputs import checks
from service.inputs.checks import CHECK_THREADS, Findings, SubmissionChecks, check_allowed
from service.inputs.models.files import ModelHeaders
from service.settings import Settings
from service.storage.s3 import ObjectStorage
from service.store.users import Reach, Users


class _Users:
    """Those of a tenant that may read all that the installation may, and with its credentials."""

    def reach(self) -> Reach:
        return Reach(EVERY_PLACE, [])


USERS = cast(Users, _Users())


class Bucket:
    """The server's bucket, of which a submission is only told whether it answers."""

    def __init__(self) -> None:
        self.check: Callable[[], None] = lambda: None


@pytest.fixture
def spec(job_body: dict[str, Any], allowed_root: Path, text_folder: Path) -> JobSpec:
    data = {"source": "local", "path": str(text_folder)}
    problem = dict.fromkeys(("task_id", "prompt", "entry_point", "test"), "x")
    (allowed_root / "problems.jsonl").write_text(json.dumps(problem))
    problems = {"source": "local", "path": str(allowed_root / "problems.jsonl")}
    tasks = [
        {"kind": "lm_eval", "name": "harness", "tasks": ["arc_easy"]},
        {"kind": "pass_at_1", "name": "code", "data": problems},
    ]
    datasets = [{"name": "prose", "data": data}]
    return JobSpec.model_validate(job_body | {"evaluation": {"datasets": datasets, "tasks": tasks}})


pytestmark = pytest.mark.usefixtures("without_inspection")


@pytest.fixture
def allowing(allowed_root: Path) -> Settings:
    return Settings(allowed_roots=(allowed_root,), allow_code_execution=True)


"""Who names no dataset needs no database of them."""


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture
def answers() -> Iterator[Event]:
    """Set once what was slow answers: at the end of the test."""
    answers = Event()
    yield answers
    answers.set()


def run(spec: JobSpec, settings: Settings, bucket: Bucket) -> None:
    with SubmissionChecks(settings, cast(ObjectStorage, bucket)) as checks:
        asyncio.run(checks.run(spec, USERS))


def hurried(settings: Settings) -> Settings:
    return settings.model_copy(update={"submission_check_seconds": 0.05})


def test_what_is_there_and_allowed_passes(
    spec: JobSpec, allowing: Settings, bucket: Bucket
) -> None:
    run(spec, allowing, bucket)


def test_problems_without_a_field_of_their_task_are_refused(
    spec: JobSpec, allowing: Settings, bucket: Bucket, allowed_root: Path
) -> None:
    (allowed_root / "problems.jsonl").write_text('{"task_id": 1, "prompt": "", "test": ""}\n')
    with pytest.raises(DataInvalid, match="no field 'entry_point'") as caught:
        run(spec, allowing, bucket)
    assert caught.value.param == "evaluation.tasks.1.data"


def test_text_that_its_beginning_shows_to_be_none_is_refused(
    spec: JobSpec, allowing: Settings, bucket: Bucket, text_folder: Path
) -> None:
    (text_folder / "text.txt").write_bytes(b"")
    with pytest.raises(DataInvalid, match=r"There is no text in 'text\.txt'") as caught:
        run(spec, allowing, bucket)
    assert caught.value.param == "calibration.data"


@pytest.mark.parametrize(
    "param",
    ["calibration.data", "evaluation.datasets.0.data", "evaluation.tasks.1.data"],
)
def test_a_slow_text_is_named(
    monkeypatch: pytest.MonkeyPatch,
    answers: Event,
    spec: JobSpec,
    allowing: Settings,
    bucket: Bucket,
    param: str,
) -> None:
    def check(_source: object, _settings: Settings, name: str, _credentials: object) -> None:
        if name in (param, param.removesuffix(".data")):
            answers.wait()

    monkeypatch.setattr(checks, "check_data", check)
    monkeypatch.setattr(checks, "check_problems", check)
    with pytest.raises(SubmissionCheckTimeout, match=rf"^{param}: .* 0\.05 seconds") as caught:
        run(spec, hurried(allowing), bucket)
    assert caught.value.param == param


def test_a_slow_model_is_named_and_nothing_else_is_looked_at_any_more(
    monkeypatch: pytest.MonkeyPatch, answers: Event, spec: JobSpec, allowing: Settings
) -> None:
    seen: list[str] = []
    bucket = Bucket()
    bucket.check = lambda: seen.append("bucket")
    monkeypatch.setattr(checks, "inspect_model", lambda *_: answers.wait())
    monkeypatch.setattr(checks, "check_data", lambda *_: seen.append("data"))
    slow = SubmissionChecks(hurried(allowing), cast(ObjectStorage, bucket))
    with pytest.raises(SubmissionCheckTimeout) as caught:
        asyncio.run(slow.run(spec, USERS))
    assert caught.value.param == "model"
    answers.set()
    slow._executor.shutdown()  # waits for the thread
    assert seen == []


def test_a_slow_bucket_is_no_field_of_the_request(
    answers: Event, spec: JobSpec, allowing: Settings, bucket: Bucket
) -> None:
    bucket.check = lambda: cast(None, answers.wait())
    with pytest.raises(SubmissionCheckTimeout, match=r"^the server's bucket: ") as caught:
        run(spec, hurried(allowing), bucket)
    assert caught.value.param is None


def test_where_every_thread_is_busy_the_submission_is_told_so_and_never_checked(
    monkeypatch: pytest.MonkeyPatch,
    answers: Event,
    spec: JobSpec,
    allowing: Settings,
    bucket: Bucket,
) -> None:
    begun: list[object] = []

    def check_model(*_: object) -> None:
        begun.append(None)
        answers.wait()

    monkeypatch.setattr(checks, "check_model", check_model)
    slow = SubmissionChecks(hurried(allowing), cast(ObjectStorage, bucket))

    async def submit() -> list[BaseException | None]:
        submissions = (slow.run(spec, USERS) for _ in range(CHECK_THREADS + 1))
        return await asyncio.gather(*submissions, return_exceptions=True)

    *_, last = asyncio.run(submit())
    assert isinstance(last, SubmissionCheckTimeout)
    assert f"{CHECK_THREADS} other jobs were" in last.detail
    answers.set()
    slow._executor.shutdown()
    assert len(begun) == CHECK_THREADS


def test_a_timeout_of_a_check_is_not_taken_for_the_deadline(
    spec: JobSpec, allowing: Settings, bucket: Bucket
) -> None:
    def check() -> None:
        raise TimeoutError("the check's own")

    bucket.check = check
    with pytest.raises(TimeoutError, match="the check's own"):
        run(spec, allowing, bucket)


def test_code_is_refused_elsewhere_and_the_setting_named(
    spec: JobSpec, allowed_root: Path, bucket: Bucket
) -> None:
    settings = Settings(allowed_roots=(allowed_root,))
    with pytest.raises(CodeExecutionForbidden, match="EIGENPRESS_ALLOW_CODE_EXECUTION") as caught:
        check_allowed(spec, settings)
    assert caught.value.param == "evaluation.tasks.1"
    with pytest.raises(CodeExecutionForbidden):
        run(spec, settings, bucket)


def find(spec: JobSpec, settings: Settings, bucket: Bucket) -> Findings:
    with SubmissionChecks(settings, cast(ObjectStorage, bucket)) as checks:
        return asyncio.run(checks.find(spec, USERS))


def test_an_estimate_hears_of_every_refusal_and_gets_the_headers(
    spec: JobSpec, allowed_root: Path, text_folder: Path, bucket: Bucket
) -> None:
    (text_folder / "text.txt").write_bytes(b"")
    found = find(spec, Settings(allowed_roots=(allowed_root,)), bucket)
    assert [(error.code, error.param) for error in found.refusals] == [
        ("code_execution_forbidden", "evaluation.tasks.1"),
        ("data_invalid", "calibration.data"),
        ("data_invalid", "evaluation.datasets.0.data"),
    ]
    assert isinstance(found.headers, ModelHeaders)


def test_a_refused_class_leaves_the_headers(
    monkeypatch: pytest.MonkeyPatch, spec: JobSpec, allowing: Settings, bucket: Bucket
) -> None:
    def refuse(*_: object) -> None:
        raise UnsupportedLayer("model.layers.0 is a Conv1d, not an nn.Linear", param="model")

    monkeypatch.setattr(checks, "inspect_model", refuse)
    found = find(spec, allowing, bucket)
    assert [error.code for error in found.refusals] == ["unsupported_layer"]
    assert found.headers is not None


def test_what_takes_too_long_is_a_refusal_of_an_estimate(
    monkeypatch: pytest.MonkeyPatch,
    answers: Event,
    spec: JobSpec,
    allowing: Settings,
    bucket: Bucket,
) -> None:
    monkeypatch.setattr(checks, "check_data", lambda *_: answers.wait())
    found = find(spec, hurried(allowing), bucket)
    assert [error.code for error in found.refusals] == ["submission_check_timeout"]
    assert found.headers is not None


def test_a_bucket_that_has_just_answered_is_not_asked_again(
    spec: JobSpec, allowing: Settings, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[None] = []

    def check() -> None:
        asked.append(None)
        if len(asked) == 1:
            raise StorageUnavailable("away")

    bucket.check = check
    with SubmissionChecks(allowing, cast(ObjectStorage, bucket)) as checked:
        with pytest.raises(StorageUnavailable):
            asyncio.run(checked.run(spec, USERS))
        for _ in range(3):  # a failure is no answer, so the second one asks
            asyncio.run(checked.run(spec, USERS))
        assert len(asked) == 2
        monkeypatch.setattr(checks, "BUCKET_FRESH_SECONDS", 0.0)
        asyncio.run(checked.run(spec, USERS))
        assert len(asked) == 3

"""A fingerprint changes with everything that can change the result, and with nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.domain.spec.evaluation import MultipleChoice
from service.domain.spec.job import JobSpec
from workers.evaluation.problems import Choice, Exercise, Question
from workers.resumption.fingerprint import (
    LIBRARIES,
    Machines,
    code_digest,
    files_digest,
    library_versions,
    model_digest,
    take_fingerprint,
)
from workers.text.texts import EvaluationText, Texts

BODY: dict[str, Any] = {
    "name": "one",
    "model": {"source": "local", "path": "/models/small"},
    "calibration": {"data": {"source": "local", "path": "/texts"}},
    "targets": [{"keep": 0.8}],
}
TASK = MultipleChoice.model_validate(
    {"kind": "multiple_choice", "name": "quiz", "data": BODY["calibration"]["data"]}
)


def texts(
    calibration: list[list[int]] | None = None, name: str = "held-out", last: int = 9
) -> Texts:
    evaluation = [EvaluationText(name, 3, [[5, 6], [7, 8, last]])]
    return Texts(10, [[1, 2], [3, 4]] if calibration is None else calibration, evaluation, [])


def exercise(answer: int = 1, **changes: Any) -> Exercise:
    choices = (Choice([1, 2], 1, 3), Choice([1, 3], 1, 3))
    return Exercise(TASK.model_copy(update=changes), [Question(choices, answer)])


def parts(**changes: Any) -> Any:
    given: dict[str, Any] = {
        "model": "m" * 64,
        "texts": texts(),
        "exercises": [exercise()],
        "spec": JobSpec.model_validate(BODY),
        "machines": Machines(("x86_64 AVX2",) * 2, 4),
        "code": "c" * 64,
        "libraries": {"torch": "1", "transformers": "2"},
    }
    return take_fingerprint(**given | changes)


def spec(**changes: Any) -> JobSpec:
    return JobSpec.model_validate(BODY | changes)


def calibration(**changes: Any) -> JobSpec:
    return spec(calibration=BODY["calibration"] | changes)


CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "model": ("model", {"model": "n" * 64}),
    "a token": ("calibration text", {"texts": texts([[1, 2], [3, 5]])}),
    "where sequences are cut": ("calibration text", {"texts": texts([[1, 2, 3], [4]])}),
    "a sequence less": ("calibration text", {"texts": texts([[1, 2]])}),
    "a token of the evaluation": ("evaluation text", {"texts": texts(last=10)}),
    "a dataset's name": ("evaluation text", {"texts": texts(name="wiki")}),
    "an answer": ("tasks", {"exercises": [exercise(answer=0)]}),
    "a task's name": ("tasks", {"exercises": [exercise(name="other")]}),
    "no task": ("tasks", {"exercises": []}),
    "method": ("request", {"spec": spec(method="afm")}),
    "allocation": ("request", {"spec": spec(allocation="uniform")}),
    "targets": ("request", {"spec": spec(targets=[{"keep": 0.7}])}),
    "dtype": ("request", {"spec": spec(dtype="float16")}),
    "batch size": ("request", {"spec": calibration(batch_size=4)}),
    "seed": ("request", {"spec": calibration(seed=1)}),
    "number of workers": ("machines", {"machines": Machines(("x86_64 AVX2",), 4)}),
    "threads": ("machines", {"machines": Machines(("x86_64 AVX2",) * 2, 2)}),
    "a device": ("machines", {"machines": Machines(("x86_64 AVX2", "x86_64 AVX512"), 4)}),
    "code": ("code", {"code": "d" * 64}),
    "a library": ("libraries", {"libraries": {"torch": "1", "transformers": "3"}}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_part_matters_and_is_named(change: str) -> None:
    part, changed = CHANGES[change]
    assert parts(**changed).digest != parts().digest
    assert parts(**changed).differences(parts().parts) == [part]


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "two"},
        {"priority": 7},
        {"labels": {"team": "ml"}},
        {"limits": {"run_seconds": 60}},
        {"workers": 2},
        {"model": {"source": "local", "path": "/elsewhere"}},
    ],
    ids=str,
)
def test_what_changes_no_bit_does_not_matter(changes: dict[str, Any]) -> None:
    assert parts(spec=spec(**changes)).digest == parts().digest


def test_equal_attempts_have_equal_fingerprints() -> None:
    assert parts() == parts()
    assert parts().digest == parts().digest
    assert parts().differences({}) == sorted(parts().parts)


def test_files_count_by_content_and_name_and_in_any_order(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    whole = files_digest(tmp_path, [one, two])
    assert whole == files_digest(tmp_path, [two, one])
    assert whole != files_digest(tmp_path, [one])
    two.rename(tmp_path / "three")
    assert whole != files_digest(tmp_path, [one, tmp_path / "three"])
    (tmp_path / "three").rename(two)
    two.write_text("3")
    assert whole != files_digest(tmp_path, [one, two])


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_model_is_its_weights_its_configuration_and_its_tokenizer(
    tiny_llama: Path, tmp_path: Path, name: str
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in tiny_llama.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert model_digest(copy) == model_digest(tiny_llama)
    (copy / "notes.bin").write_text("of no account")
    assert model_digest(copy) == model_digest(tiny_llama)
    (copy / name).write_bytes((copy / name).read_bytes() + b" ")
    assert model_digest(copy) != model_digest(tiny_llama)


def test_the_installation_is_known() -> None:
    digest = code_digest("workers")
    assert digest == code_digest("workers")
    assert digest != code_digest("service") != code_digest("service", "workers")
    assert len(digest) == 64
    assert library_versions().keys() == set(LIBRARIES)

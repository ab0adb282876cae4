"""The fields of a form that says a job's specification.

A field is named like its location in the specification, with the kinds of its unions:
`model.local.path`, `targets.0.size.keep`. What it is (its default, its choices, its description)
comes from the specification's models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel

from service.domain.spec.calibration import Calibration, Recovery
from service.domain.spec.evaluation import MAX_EVALUATION_DATASETS, Evaluation, EvaluationDataset
from service.domain.spec.job import MAX_TARGETS, JobSpec, Limits
from service.domain.spec.sources import (
    DatasetData,
    HubData,
    HubModel,
    LocalData,
    LocalPath,
    S3Data,
    S3Prefix,
)
from service.domain.spec.stored import field_path
from service.domain.spec.targets import ByteTarget, QualityTarget, SizeTarget

Form = Mapping[str, str]

MODELS: Mapping[str, type[BaseModel]] = {"local": LocalPath, "hub": HubModel, "s3": S3Prefix}
TEXTS: Mapping[str, type[BaseModel]] = {
    "local": LocalData,
    "dataset": DatasetData,
    "hub": HubData,
    "s3": S3Data,
}
TARGETS: Mapping[str, type[BaseModel]] = {
    "size": SizeTarget,
    "bytes": ByteTarget,
    "quality": QualityTarget,
}
"""The kinds of a target, as in the location of an error; a target's fields tell its kind."""
RECOVERY = "recovery.use"
"""The field that says whether layers are trained: all fields of a recovery have defaults."""
SWITCH = ("off", "on")
ROWS = {"targets": MAX_TARGETS, "evaluation.datasets": MAX_EVALUATION_DATASETS}
"""The arrays whose items are rows of fields."""


@dataclass(frozen=True)
class Field:
    """A field of the form, for one of the specification."""

    name: str
    schema: Mapping[str, Any]
    needs: tuple[str, str] | None = None
    """The field that must have this value for this one to count: its place, its target's kind, or
    a switch.
    """

    @property
    def last(self) -> str:
        """Its name within its group."""
        return self.name.rpartition(".")[2]

    @property
    def default(self) -> Any:
        return self.schema.get("default")

    @property
    def choices(self) -> list[Any]:
        if self._kind.get("type") == "boolean":
            return [True, False]
        return list(self._kind.get("enum", []))

    @property
    def is_optional(self) -> bool:
        """Whether no value is a value of its own."""
        return "anyOf" in self.schema

    @property
    def is_number(self) -> bool:
        return self._kind.get("type") in ("integer", "number") and not self.choices

    @property
    def description(self) -> str:
        return str(self.schema.get("description", ""))

    @property
    def path(self) -> list[str | int]:
        """The place of its value in the specification."""
        return [int(part) if part.isdigit() else part for part in field_path(parts_of(self.name))]

    def read(self, text: str) -> Any:
        """The value; the text itself where it is none, which the specification then refuses."""
        if self.choices:
            return next((each for each in self.choices if text_of(each) == text), text)
        try:
            match self._kind.get("type"):
                case "integer":
                    return int(text)
                case "number":
                    return float(text)
                case "array":
                    return [float(each) for each in re.split(r"[\s,;]+", text)]
        except ValueError:
            pass
        return text

    @property
    def _kind(self) -> Mapping[str, Any]:
        kinds = self.schema.get("anyOf", [self.schema])
        return next(each for each in kinds if each.get("type") != "null")


def fields(rows: Mapping[str, Sequence[int]]) -> Iterator[Field]:
    """All fields of a form with these rows."""
    yield from _of(JobSpec, "")
    yield from _chosen("model", "source", MODELS)
    yield from _chosen("calibration.data", "source", TEXTS)
    yield from _of(Calibration, "calibration.")
    yield from _of(Recovery, "recovery.", (RECOVERY, "on"))
    yield from _of(Evaluation, "evaluation.")
    yield from _of(Limits, "limits.")
    for number in rows["targets"]:
        yield from _chosen(f"targets.{number}", "kind", TARGETS)
    for number in rows["evaluation.datasets"]:
        row = f"evaluation.datasets.{number}"
        yield from _of(EvaluationDataset, f"{row}.")
        yield from _chosen(f"{row}.data", "source", TEXTS)


def rows_of(form: Form) -> dict[str, list[int]]:
    """The numbers of the rows that the form has, in order."""
    found: dict[str, list[int]] = {}
    for array, most in ROWS.items():
        pattern = re.compile(rf"{re.escape(array)}\.(\d{{1,3}})\.")
        numbers = {int(match[1]) for name in form if (match := pattern.match(name))}
        found[array] = sorted(numbers)[:most]
    return found


def kinds_of(selector: str) -> Collection[str]:
    """What the field `selector` chooses from."""
    if selector == RECOVERY:
        return SWITCH
    if selector.endswith(".kind"):
        return TARGETS
    return MODELS if selector == "model.source" else TEXTS


def chosen_in(form: Form, selector: str) -> str:
    return form.get(selector) or next(iter(kinds_of(selector)))


def text_of(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(text_of, value))
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value)


@cache
def _schemas(model: type[BaseModel]) -> Mapping[str, Mapping[str, Any]]:
    """The properties of a model that one field of a form can say."""
    properties: Mapping[str, Mapping[str, Any]] = model.model_json_schema()["properties"]
    return {name: each for name, each in properties.items() if _is_plain(each)}


def _is_plain(schema: Mapping[str, Any]) -> bool:
    if "anyOf" in schema:
        return all(map(_is_plain, schema["anyOf"]))
    if schema.get("type") == "array":
        return bool(schema["items"].get("type") == "number")
    return "const" not in schema and schema.get("type") not in (None, "object")


def _of(model: type[BaseModel], prefix: str, needs: tuple[str, str] | None = None) -> list[Field]:
    return [Field(f"{prefix}{name}", schema, needs) for name, schema in _schemas(model).items()]


def _chosen(prefix: str, selector: str, kinds: Mapping[str, type[BaseModel]]) -> list[Field]:
    """The fields of all kinds; those of the kind that the selector names count."""
    return [
        each
        for kind, model in kinds.items()
        for each in _of(model, f"{prefix}.{kind}.", (f"{prefix}.{selector}", kind))
    ]


def parts_of(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in name.split(".")]

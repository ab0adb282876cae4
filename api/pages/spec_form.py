"""From a job's specification to the fields of a form, and back.

A field of the form is named like the location of the field in the specification, with the kinds of
its unions: `model.local.path`, `targets.0.size.keep`. What a field is (its default, its choices, its
description) comes from the specification's models. A field that is left empty, or has the default,
is left out of the specification. What the form has no field for stands in `more`, as JSON.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pydantic import BaseModel

from api.schemas.problems import ProblemItem
from service.domain.labels import read_label
from service.domain.spec import (
    MAX_EVALUATION_DATASETS,
    MAX_TARGETS,
    ByteTarget,
    Calibration,
    DatasetData,
    Evaluation,
    EvaluationDataset,
    HubData,
    HubModel,
    JobSpec,
    Limits,
    LocalData,
    LocalPath,
    QualityTarget,
    S3Data,
    S3Prefix,
    SizeTarget,
    field_path,
)
from service.errors import InvalidParameter

Json = dict[str, Any]
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
ROWS = {"targets": MAX_TARGETS, "evaluation.datasets": MAX_EVALUATION_DATASETS}
"""The arrays whose items are rows of fields."""
LABELS = "labels"
MORE = "more"


@dataclass(frozen=True)
class Field:
    """A field of the form, for one of the specification."""

    name: str
    schema: Mapping[str, Any]
    needs: tuple[str, str] | None = None
    """The field that must have this value for this one to count: its place or its target's kind."""

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
        return [int(part) if part.isdigit() else part for part in field_path(_parts(self.name))]

    def read(self, text: str) -> Any:
        """The value; the text itself where it is none, which the specification then refuses."""
        if self.choices:
            return next((each for each in self.choices if _text(each) == text), text)
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


@dataclass
class Read:
    """What a form says."""

    body: Json
    rows: dict[str, list[int]] = field(default_factory=dict)
    """The numbers in the form of the rows that are not empty."""
    problems: list[ProblemItem] = field(default_factory=list)
    """What cannot be part of a specification."""

    def place_of(self, param: str) -> str:
        """The body's field by its path in the form, whose rows have numbers of their own."""
        for array, numbers in self.rows.items():
            if match := re.match(rf"{re.escape(array)}\.(\d+)", param):
                number = int(match[1])
                if number < len(numbers):
                    return f"{array}.{numbers[number]}{param[match.end() :]}"
        return param


def fields(rows: Mapping[str, Sequence[int]]) -> Iterator[Field]:
    """All fields of a form with these rows."""
    yield from _of(JobSpec, "")
    yield from _chosen("model", "source", MODELS)
    yield from _chosen("calibration.data", "source", TEXTS)
    for name, model in (("calibration", Calibration), ("evaluation", Evaluation)):
        yield from _of(model, f"{name}.")
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


def read(form: Form) -> Read:
    """The specification's document; it may be invalid."""
    rows = rows_of(form)
    found = Read({})
    for each in fields(rows):
        text = form.get(each.name, "").strip()
        if text and (each.needs is None or chosen_in(form, each.needs[0]) == each.needs[1]):
            value = each.read(text)
            if value != each.default:
                _put(found.body, each.path, value)
    for array, numbers in rows.items():
        _close(found, array, numbers)
    _add_places(found, form)
    _add_labels(found, form.get(LABELS, ""))
    _add_more(found, form.get(MORE, ""))
    known = [name for name in JobSpec.model_fields if name in found.body]
    found.body = {name: found.body[name] for name in (*known, *found.body)}
    return found


def write(document: Json) -> dict[str, str]:
    """The form that says this; the document is a specification's, as JSON."""
    rest = copy.deepcopy(document)
    form: dict[str, str] = {}
    rows = {array: range(len(_at(rest, array.split(".")) or ())) for array in ROWS}
    for name, kind in _kinds(rest, rows):
        form[name] = kind
    for each in fields(rows):
        if each.needs is not None and form[each.needs[0]] != each.needs[1]:
            continue
        value = _pop(rest, each.path)
        if value is not None:
            form[each.name] = _text(value)
    labels = rest.pop(LABELS, {})
    form[LABELS] = "\n".join(f"{name}={value}" for name, value in labels.items())
    left = _without_empty(rest)
    form[MORE] = json.dumps(left, ensure_ascii=False) if left else ""
    return form


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


def kinds_of(selector: str) -> Mapping[str, type[BaseModel]]:
    """What the field `selector` chooses from."""
    if selector.endswith(".kind"):
        return TARGETS
    return MODELS if selector == "model.source" else TEXTS


def chosen_in(form: Form, selector: str) -> str:
    return form.get(selector) or next(iter(kinds_of(selector)))


def _kinds(document: Json, rows: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, str]]:
    """The fields that choose a place or the kind of a target, with what they choose."""
    places = ["model", "calibration.data"]
    places += [f"evaluation.datasets.{number}.data" for number in rows["evaluation.datasets"]]
    for place in places:
        source = _pop(document, [*_parts(place), "source"])
        yield f"{place}.source", str(source) if source else next(iter(MODELS))
    for number, target in enumerate(document.get("targets", ())):
        marks = {"quality": "max_perplexity_increase", "size": "keep"}
        kind = next((kind for kind, mark in marks.items() if mark in target), "bytes")
        yield f"targets.{number}.kind", kind


def _add_places(found: Read, form: Form) -> None:
    for place in ("model", "calibration.data"):
        *above, name = place.split(".")
        container = found.body if not above else found.body.setdefault(above[0], {})
        source = chosen_in(form, f"{place}.source")
        container[name] = {"source": source, **container.get(name, {})}
    datasets = _at(found.body, ["evaluation", "datasets"]) or []
    for dataset, number in zip(datasets, found.rows["evaluation.datasets"], strict=True):
        source = chosen_in(form, f"evaluation.datasets.{number}.data.source")
        dataset["data"] = {"source": source, **dataset.get("data", {})}


def _close(found: Read, array: str, numbers: Sequence[int]) -> None:
    """Make an array of the rows that are not empty."""
    *path, name = array.split(".")
    container = _at(found.body, path) or {}
    by_number = container.get(name, {})
    found.rows[array] = [number for number in numbers if number in by_number]
    if found.rows[array]:
        container[name] = [by_number[number] for number in found.rows[array]]
    if array == "targets":
        found.body.setdefault(name, [])


def _add_labels(found: Read, text: str) -> None:
    labels: dict[str, str] = {}
    for line in filter(str.strip, text.splitlines()):
        try:
            name, value = read_label(line)
        except ValueError as error:
            code = InvalidParameter.code
            found.problems.append(ProblemItem(code=code, detail=str(error), param=LABELS))
        else:
            labels[name] = value
    if labels:
        found.body[LABELS] = labels


def _add_more(found: Read, text: str) -> None:
    if not text.strip():
        return
    try:
        more = json.loads(text)
    except ValueError as error:
        more, why = None, str(error)
    else:
        why = "it is no object"
    if isinstance(more, dict):
        found.body = _merged(found.body, more)
    else:
        detail = f"Further fields must be a JSON object: {why}"
        code = InvalidParameter.code
        found.problems.append(ProblemItem(code=code, detail=detail, param=MORE))


def _merged(document: Json, more: Json) -> Json:
    """Both, objects joined; of arrays the items at the same place."""
    result = dict(document)
    for name, value in more.items():
        before = result.get(name)
        both = isinstance(before, dict) and isinstance(value, dict)
        result[name] = _merged(before, value) if both else value  # type: ignore[arg-type]
    return result


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value)


def _parts(name: str) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in name.split(".")]


def _at(document: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        try:
            document = document[part]
        except (KeyError, IndexError, TypeError):
            return None
    return document


def _pop(document: Json, path: Sequence[str | int]) -> Any:
    container = _at(document, path[:-1])
    return container.pop(path[-1], None) if isinstance(container, dict) else None


def _put(document: Json, path: Sequence[str | int], value: Any) -> None:
    """Rows are kept by their numbers until all fields are read."""
    *above, last = path
    container: dict[str | int, Any] = document  # type: ignore[assignment]
    for part in above:
        container = container.setdefault(part, {})
    container[last] = value


def _without_empty(value: Any) -> Any:
    """The document without objects and arrays that have become empty."""
    if isinstance(value, dict):
        kept = {name: _without_empty(each) for name, each in value.items()}
        return {name: each for name, each in kept.items() if each not in ({}, [])}
    if isinstance(value, list):
        kept_items = [_without_empty(each) for each in value]
        return kept_items if any(each not in ({}, []) for each in kept_items) else []
    return value

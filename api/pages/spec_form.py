"""From a form to a job's specification, and back.

A field that is left empty, or has the default, is left out of the specification. What the form has
no field for stands in `more`, as JSON.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from api.pages.spec_fields import (
    MODELS,
    RECOVERY,
    ROWS,
    Form,
    chosen_in,
    fields,
    parts_of,
    rows_of,
    text_of,
)
from api.schemas.problems import ProblemItem
from service.domain.labels import read_label
from service.domain.spec.job import JobSpec
from service.errors import InvalidParameter

Json = dict[str, Any]
LABELS = "labels"
MORE = "more"


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
    if chosen_in(form, RECOVERY) == "on":
        found.body.setdefault("recovery", {})
    _add_labels(found, form.get(LABELS, ""))
    _add_more(found, form.get(MORE, ""))
    known = [name for name in JobSpec.model_fields if name in found.body]
    found.body = {name: found.body[name] for name in (*known, *found.body)}
    return found


def write(document: Json) -> dict[str, str]:
    """The form that says this; the document is a specification's, as JSON."""
    rest = copy.deepcopy(document)
    rows = {array: range(len(_at(rest, array.split(".")) or ())) for array in ROWS}
    form = dict(_kinds(rest, rows))
    for each in fields(rows):
        if each.needs is not None and form[each.needs[0]] != each.needs[1]:
            continue
        value = _pop(rest, each.path)
        if value is not None:
            form[each.name] = text_of(value)
    labels = rest.pop(LABELS, {})
    form[LABELS] = "\n".join(f"{name}={value}" for name, value in labels.items())
    left = _without_empty(rest)
    form[MORE] = json.dumps(left, ensure_ascii=False) if left else ""
    return form


def _kinds(document: Json, rows: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, str]]:
    """The fields that choose a place, the kind of a target or a recovery, with their choice."""
    places = ["model", "calibration.data"]
    places += [f"evaluation.datasets.{number}.data" for number in rows["evaluation.datasets"]]
    for place in places:
        source = _pop(document, [*parts_of(place), "source"])
        yield f"{place}.source", str(source) if source else next(iter(MODELS))
    recovers = document.get("recovery") is not None
    yield RECOVERY, "on" if recovers else "off"
    if not recovers:
        document.pop("recovery", None)
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

"""The form of a new job as its templates show it: the fields, their values and their errors."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from api.errors import MAX_LISTED_ERRORS, problem_items
from api.pages import spec_fields
from api.pages.spec_fields import Field, Form, chosen_in
from api.pages.spec_form import LABELS, MORE, Read
from api.schemas.problems import ProblemItem
from service.cli.job_file import job_yaml
from service.domain.spec.job import JobSpec

TOKEN = "once"  # noqa: S105  (the field with the form's idempotency key)
FIRST = {"targets.0.kind": "size", "targets.0.size.keep": "0.8"}
"""What an empty form begins with."""


@dataclass
class NewForm:
    """A form, and what was found in it."""

    form: Form
    errors: dict[str, list[str]] = field(default_factory=dict)
    """By the name of a field or of a group of fields; what is no field's is under ''."""
    focus: str | None = None
    """The field that gets the focus."""

    def __post_init__(self) -> None:
        self.rows = spec_fields.rows_of(self.form)
        self._fields = {each.name: each for each in spec_fields.fields(self.rows)}

    @property
    def token(self) -> str:
        return self.form.get(TOKEN) or secrets.token_hex(16)

    def field(self, name: str) -> Field:
        return self._fields[name]

    def fields_of(self, prefix: str) -> list[Field]:
        """The fields directly in this group."""
        return [each for name, each in self._fields.items() if name.rpartition(".")[0] == prefix]

    def value(self, name: str) -> str:
        return self.form.get(name, "")

    def chosen(self, selector: str) -> str:
        return chosen_in(self.form, selector)

    def shown(self, name: str) -> str:
        """The field's name in the specification, as in the API's messages."""
        each = self._fields.get(name)
        return name if each is None else ".".join(map(str, each.path))

    def kinds(self, selector: str) -> list[str]:
        return list(spec_fields.kinds_of(selector))

    def wrong(self, name: str) -> list[str]:
        return self.errors.get(name, [])

    def is_set(self, *prefixes: str) -> bool:
        """Whether a field of these groups has another value than its default, or an error."""
        changed = [name for name, each in self._fields.items() if self._differs(each)]
        changed += [name for name in (LABELS, MORE) if self.value(name).strip()]
        return any(each.startswith(prefixes) for each in (*changed, *self.errors))

    def _differs(self, each: Field) -> bool:
        text = self.value(each.name).strip()
        return bool(text) and each.read(text) != each.default

    def add(self, problems: Iterable[ProblemItem], read: Read) -> None:
        """Put each problem to the field that it is about."""
        for problem in problems:
            name = self.name_of(problem.param, read)
            self.errors.setdefault(name, []).append(_without_param(problem))

    def name_of(self, param: str | None, read: Read) -> str:
        """The name of the field that the problem is about, or of the group around it."""
        place = read.place_of(param or "")
        for name, each in self._fields.items():
            counts = each.needs is None or self.chosen(each.needs[0]) == each.needs[1]
            if counts and ".".join(map(str, each.path)) == place:
                return name
        groups = {LABELS, MORE, "model", "calibration.data", "recovery", *spec_fields.ROWS}
        for array, numbers in self.rows.items():
            groups |= {f"{array}.{number}" for number in numbers}
        while place and place not in groups:
            place = place.rpartition(".")[0]
        return place


def _without_param(problem: ProblemItem) -> str:
    """The words, without the name in front, which stands beside them."""
    return problem.detail.removeprefix(f"{problem.param}: ")


def with_row(form: Form, array: str) -> tuple[dict[str, str], str]:
    """The form with another row, and the row's name."""
    number = max(spec_fields.rows_of(form)[array], default=-1) + 1
    row = f"{array}.{number}"
    selector = "kind" if array == "targets" else "data.source"
    first = next(iter(spec_fields.kinds_of(f"{row}.{selector}")))
    return {**form, f"{row}.{selector}": first}, row


def without_row(form: Form, row: str) -> dict[str, str]:
    return {name: value for name, value in form.items() if not name.startswith(f"{row}.")}


@dataclass(frozen=True)
class Parsed:
    """The specification, or what is wrong with it."""

    spec: JobSpec | None
    problems: list[ProblemItem]
    missing: list[ProblemItem]
    """Those of the problems that are about what has not been filled in."""

    @classmethod
    def of(cls, read: Read) -> Parsed:
        try:
            spec = JobSpec.model_validate(read.body)
        except ValidationError as error:
            found = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
            missing = [each for each in found if each["type"] in ("missing", "too_short")]
            problems = [*read.problems, *problem_items(found[:MAX_LISTED_ERRORS])]
            return cls(None, problems, problem_items(missing))
        return cls(None if read.problems else spec, read.problems, [])


@dataclass(frozen=True)
class Sending:
    """The form as a request: what a terminal would send."""

    body: Mapping[str, Any]
    url: str

    @property
    def commands(self) -> Mapping[str, str]:
        """By the program."""
        return {"eigenpress": self._eigenpress, "curl": self._curl}

    @property
    def _curl(self) -> str:
        text = json.dumps(self.body, indent=2, ensure_ascii=False)
        return (
            f'curl "{self.url}/v1/jobs" -H "Authorization: Bearer $EIGENPRESS_KEY" \\\n'
            f"  -H 'Content-Type: application/json' --data-binary @- <<'END'\n{text}\nEND"
        )

    @property
    def _eigenpress(self) -> str:
        return f"eigenpress submit --url {self.url} --file - <<'END'\n{job_yaml(self.body)}END"

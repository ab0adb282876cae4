"""Defaults in the help of options, read from the models that define them."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from rich.markup import escape


def with_default(text: str, model: type[BaseModel], path: str) -> str:
    r"""The help text of an option, followed by the default of the field that it sets.

    `path` leads from `model` to the field: ``calibration.sequences``. Raises LookupError unless
    the field has one default.

    >>> from service.domain.spec.job import JobSpec
    >>> with_default("Tokens in each.", JobSpec, "calibration.sequence_length")
    'Tokens in each. \\[default: 512]'
    """
    return f"{text} {escape(f'[default: {default_of(model, path)}]')}".lstrip()


def default_of(model: type[BaseModel], path: str) -> Any:
    """The default of the field at `path`, in whichever models of a union have that field.

    Raises LookupError if no model has it, if it is required, or if the models disagree.
    """
    *fields, last = path.split(".")
    models = [model]
    for name in fields:
        models = [
            inner
            for outer in models
            if name in outer.model_fields
            for inner in _models_in(outer.model_fields[name].annotation)
        ]
    found = {each.model_fields[last].default for each in models if last in each.model_fields}
    if len(found) != 1 or PydanticUndefined in found:
        raise LookupError(f"{model.__name__} has no single default for {path}")
    return found.pop()


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field's type consists of: itself, or the members of unions and tuples."""
    if inner := get_args(annotation):
        return [model for each in inner for model in _models_in(each)]
    return (
        [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
    )

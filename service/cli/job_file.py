"""A job in a file: YAML or JSON, with the fields of `POST /v1/jobs`.

YAML is read as its version 1.2 defines it: ``no`` is a word, not false, and a date is text.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from service.client.answers import Json
from service.printable import printable

DIGITS = "-0123456789"
PLAIN_SCALARS = (
    ("null", r"(null|Null|NULL|~|)", ["n", "N", "~", ""]),
    ("bool", r"(true|True|TRUE|false|False|FALSE)", [*"tTfF"]),
    ("int", r"-?(0|[1-9][0-9]*)", [*DIGITS]),
    ("float", r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?", [*DIGITS]),
)
"""What is not text without quotes: type, pattern, first characters."""


def read_job(file: Path) -> Json:
    """The job in a file, or in standard input (``-``). Raises BadParameter."""
    shown = printable(str(file))
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    except OSError as error:
        raise _wrong(f"{shown}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _wrong(f"{shown} is not UTF-8") from error
    try:
        body = json.loads(text)
    except ValueError as error:
        if file.suffix == ".json":
            raise _wrong(f"{shown} is not JSON: {error}") from error
        body = _read_yaml(text, shown)
    if not isinstance(body, dict):
        raise _wrong(f"{shown} is not a JSON object, or a mapping of YAML, with a job's fields")
    return body


def job_yaml(job: Mapping[str, Any]) -> str:
    """The job as YAML, from which `read_job` reads the same."""
    import yaml  # takes a while

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        """Writes quotes also around texts that are more than text in YAML 1.2 alone."""

    _add_scalars(Dumper)
    text: str = yaml.dump(dict(job), Dumper=Dumper, sort_keys=False, allow_unicode=True)
    return text


def overlaid(job: Json, typed: Json) -> Json:
    """The job with what was typed in the place of its fields.

    A model or text whose place was typed is replaced as a whole, as are arrays.
    """
    result = dict(job)
    for name, value in typed.items():
        before = job.get(name)
        part = isinstance(value, dict) and isinstance(before, dict) and "source" not in value
        result[name] = overlaid(before, value) if part else value  # type: ignore[arg-type]
    return result


def _read_yaml(text: str, shown: str) -> Any:
    import yaml  # takes a while

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  (as yaml declares it)

    _add_scalars(Loader)
    try:
        read = yaml.load(text, Loader)  # noqa: S506  (a safe one)
        return json.loads(json.dumps(read, allow_nan=False))
    except yaml.YAMLError as error:
        raise _wrong(f"{shown} is neither JSON nor YAML: {' '.join(str(error).split())}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise _wrong(f"{shown} has what JSON has no form for: {error}") from error


def _add_scalars(resolver: Any) -> None:
    for kind, pattern, first in PLAIN_SCALARS:
        tag = f"tag:yaml.org,2002:{kind}"
        resolver.add_implicit_resolver(tag, re.compile(rf"^{pattern}$"), first)


def _wrong(message: str) -> typer.BadParameter:
    return typer.BadParameter(message, param_hint="--file")

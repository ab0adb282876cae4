"""Turns command-line values into the body of `POST /v1/jobs`, with pure functions.

Options that the user left out are not sent, so the server's defaults apply. The server checks the
rest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from service.client.answers import Json
from service.domain.labels import LABEL_NAME_PATTERN, read_label
from service.domain.spec.fields import NAME_PATTERN
from service.domain.spec.sources import COMMIT_PATTERN

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


CommitOf = Callable[[str, str], str]
"""A function from a repository on the hub and a revision to the commit that it names."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class ValueInvalid(ValueError):
    """A value of the command line cannot be parsed; the message says what to type."""


def source(text: str, commit_of: CommitOf | None = None) -> Json:
    """Where a model or a text is: a path, ``s3://bucket/prefix`` or ``hub:org/name@commit``.

    A text may also be ``dataset:ID``, one that was uploaded.

    Without a commit, or with a branch or a tag in its place, `commit_of` finds the commit.

    >>> source("hub:org/model@" + 40 * "0")["id"]
    'org/model'
    """
    if text.startswith("s3://"):
        return {"source": "s3", "uri": text}
    if text.startswith("dataset:"):
        return {"source": "dataset", "id": text.removeprefix("dataset:")}
    if text.startswith("hub:"):
        repository, _, revision = text.removeprefix("hub:").partition("@")
        if not re.fullmatch(COMMIT_PATTERN, revision):
            if commit_of is None or not _HUB_ID.fullmatch(repository):
                raise ValueInvalid(f"{text} lacks a full commit: hub:org/name@<40 hex digits>")
            revision = commit_of(repository, revision or "main")
        return {"source": "hub", "id": repository, "revision": revision}
    if not text or _SCHEME.match(text):
        raise ValueInvalid(f"{text!r} is not a path, s3://bucket/prefix or hub:org/name@commit")
    path = Path(text).expanduser().absolute()
    if _HUB_ID.fullmatch(text) and not path.exists():
        raise ValueInvalid(f"there is no {path}; a model or dataset of the hub is hub:{text}")
    return {"source": "local", "path": str(path)}


def fraction(text: str) -> float:
    """A number between 0 and 1, such as ``0.8``."""
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        raise ValueInvalid(f"{text!r} is not a fraction such as 0.8") from None
    if text.endswith("%") or 1 < number < 100:
        raise ValueInvalid(
            f"{text!r} is not a fraction; for {number:g} percent, type {number / 100:g}"
        )
    if not 0 < number < 1:
        raise ValueInvalid(f"{text!r} is not between 0 and 1")
    return number


def job_name(text: str) -> str:
    """A job's name."""
    if not re.fullmatch(NAME_PATTERN, text):
        raise ValueInvalid(
            f"{text!r} is not a name: up to 63 letters, digits and . _ - are, such as "
            f"{re.sub(r'[^A-Za-z0-9._-]+', '-', text).strip('._-')[:63] or 'my-model'}"
        )
    return text


def label(text: str) -> tuple[str, str]:
    """``NAME=VALUE``: a label, such as ``team=ml``."""
    try:
        return read_label(text)
    except ValueError as error:
        raise ValueInvalid(str(error)) from error


def label_change(text: str) -> tuple[str, str | None]:
    """``NAME=VALUE`` to set a label, ``NAME-`` to remove one, which is None.

    >>> label_change("team-")
    ('team', None)
    """
    name = text.removesuffix("-")
    if "=" not in text and name != text and re.fullmatch(LABEL_NAME_PATTERN, name):
        return name, None
    return label(text)


def evaluation_dataset(text: str, commit_of: CommitOf | None = None) -> Json:
    """``NAME=DATA``: a further text to measure perplexity on."""
    name, _, place = text.partition("=")
    if not (name and place):
        raise ValueInvalid(f"{text!r} is not NAME=DATA")
    return {"name": name, "data": source(place, commit_of)}


def job_body(
    *,
    model: Json | None,
    data: Json | None,
    keep: Sequence[float] = (),
    scope: str | None = None,
    optimize: str | None = None,
    bytes_fraction: Sequence[float] = (),
    precisions: str | None = None,
    embedding_bits: int | None = None,
    max_perplexity_increase: Sequence[float] = (),
    evaluation: Sequence[Json] = (),
    calibration: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Json:
    """The specification, as far as it is given; `settings` are its other top-level fields."""
    body: Json = {
        **settings,
        "model": model,
        "calibration": {"data": data, **(calibration or {})},
        "targets": [
            *({"keep": fraction, "scope": scope, "optimize": optimize} for fraction in keep),
            *(
                {
                    "bytes_fraction": fraction,
                    "scope": scope,
                    "precisions": precisions,
                    "embedding_bits": embedding_bits,
                }
                for fraction in bytes_fraction
            ),
            *({"max_perplexity_increase": increase} for increase in max_perplexity_increase),
        ],
        "evaluation": {"datasets": list(evaluation)},
    }
    given: Json = _given(body)
    return given


def _given(value: Any) -> Any:
    """The value without the fields, at any depth, that are None or empty."""
    if isinstance(value, dict):
        kept = {key: _given(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item not in (None, [], {})}
    if isinstance(value, list):
        return [_given(item) for item in value]
    return value

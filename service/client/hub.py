"""Finds the commit that a branch or a tag of a repository on the hub names now."""

from __future__ import annotations

import os
import re
from typing import Literal
from urllib.parse import quote

import httpx

from service.client.request import ValueInvalid
from service.domain.spec.sources import COMMIT_PATTERN

ENDPOINT_VARIABLE, DEFAULT_ENDPOINT = "HF_ENDPOINT", "https://huggingface.co"
TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105 - the hub's own name for it
ANSWER_SECONDS = 20


def commit_of(kind: Literal["model", "dataset"], repository: str, revision: str) -> str:
    """The full commit of a revision. Raises ValueInvalid if the hub does not tell."""
    endpoint = os.environ.get(ENDPOINT_VARIABLE, DEFAULT_ENDPOINT).rstrip("/")
    url = f"{endpoint}/api/{kind}s/{quote(repository)}/revision/{quote(revision, safe='')}"
    token = os.environ.get(TOKEN_VARIABLE)
    try:
        answer = httpx.get(
            url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=ANSWER_SECONDS,
            follow_redirects=True,
        )
        commit = answer.json()["sha"] if answer.is_success else None
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise ValueInvalid(
            f"{endpoint} does not say which commit '{revision}' of {repository} is "
            f"({type(error).__name__}): name one, hub:{repository}@<40 hex digits>"
        ) from error
    if not isinstance(commit, str) or not re.fullmatch(COMMIT_PATTERN, commit):
        raise ValueInvalid(
            f"{endpoint} has no {kind} '{repository}' with the revision '{revision}', or it is "
            f"private and {TOKEN_VARIABLE} is not set (status {answer.status_code})"
        )
    return commit

"""The bodies of liveness and readiness."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from api.schemas import examples
from api.schemas.schema import Schema


class Health(Schema):
    """The process answers."""

    model_config = examples.example({"status": "ok"})

    status: Literal["ok"] = "ok"


class Check(Schema):
    """Whether one dependency answers, and the error if it does not."""

    ok: bool
    detail: str | None = None


class Readiness(Schema):
    """Whether every dependency of the server answers."""

    model_config = examples.example(examples.READINESS)

    ready: bool
    database: Check
    storage: Check = Field(description="Needed to accept jobs and to hand out artifacts.")
    cluster: Check = Field(description="Needed to run jobs; without it they stay queued.")

"""What the bucket keeps of an attempt's logs.

jobs/{job}/logs/attempt-{attempt}/driver.log, worker-0.log, ...   the end of each log
jobs/{job}/logs/attempt-{attempt}/index.json                      written last
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.domain.manifest import logs_prefix
from service.errors import ObjectMissing
from service.storage.s3 import ObjectStorage


class KeptLog(BaseModel):
    """The end of one log: its bytes from `start` on."""

    model_config = ConfigDict(frozen=True)

    start: int = Field(ge=0)
    size: int = Field(ge=0)

    @property
    def end(self) -> int:
        return self.start + self.size


class Kept(BaseModel):
    """What was kept of an attempt's logs by source, and why the others were not."""

    model_config = ConfigDict(frozen=True)

    format: Literal[1] = 1
    logs: dict[str, KeptLog] = {}
    missing: dict[str, str] = {}


def read_index(storage: ObjectStorage, job_id: str, attempt: int) -> Kept | None:
    """What was kept of the attempt; None if nothing was, or the index cannot be read."""
    try:
        return Kept.model_validate_json(storage.get_bytes(index_key(job_id, attempt)))
    except (ObjectMissing, ValidationError):
        return None


def index_key(job_id: str, attempt: int) -> str:
    return f"{_folder(job_id, attempt)}index.json"


def log_key(job_id: str, attempt: int, source: str) -> str:
    return f"{_folder(job_id, attempt)}{source}.log"


def _folder(job_id: str, attempt: int) -> str:
    return f"{logs_prefix(job_id)}attempt-{attempt}/"

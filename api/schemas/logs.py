"""The body of the response with a part of a log."""

from __future__ import annotations

from pydantic import Field

from api.schemas import examples
from api.schemas.schema import Schema


class LogPage(Schema):
    """A part of the log of one process. Offsets count bytes from the log's beginning."""

    model_config = examples.example(examples.LOG_PAGE)

    attempt: int = Field(description="0 before the first.", examples=[1])
    source: str = Field(examples=["driver"])
    sources: list[str] = Field(
        description="The logs of this attempt that can be read now.",
        examples=[["driver", "worker-0"]],
    )
    start: int = Field(
        description="Where `text` begins: beyond `after` if what lies between was not kept.",
        examples=[0],
    )
    text: str = Field(description="Secrets of the installation are masked.", examples=["Begun\n"])
    next_after: int = Field(description="Pass as `after` to read on.", examples=[6])
    complete: bool = Field(
        description="Whether the log ends with this text, and nothing will be added."
    )
    missing: str | None = Field(default=None, description="Why the log is lost, if it is.")

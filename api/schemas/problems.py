"""The body of an error, in the format of RFC 9457."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from api.schemas.schema import Schema


class ProblemItem(Schema):
    """One of several mistakes in a request."""

    code: str
    detail: str
    param: str | None


class Problem(Schema):
    """An error in the format of RFC 9457. `code` is stable; `detail` is for people."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:eigenpress:problem:invalid_parameter",
                    "title": "Invalid parameter",
                    "status": 422,
                    "detail": "targets.0.keep: Input should be less than 1 (got 1.5)",
                    "code": "invalid_parameter",
                    "param": "targets.0.keep",
                    "instance": "/v1/jobs",
                    "errors": [
                        {
                            "code": "invalid_parameter",
                            "detail": "targets.0.keep: Input should be less than 1 (got 1.5)",
                            "param": "targets.0.keep",
                        }
                    ],
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    code: str
    param: str | None = Field(default=None, description="The field of the request at fault.")
    instance: str = Field(description="The path of the request.")
    errors: list[ProblemItem] = Field(
        default=[], description="Every mistake found in the request; `detail` states the first."
    )

"""What a user may change of a job after its submission: the body of ``PATCH /v1/jobs/{id}``."""

from __future__ import annotations

from pydantic import Field

from service.domain.labels import LabelChanges
from service.domain.spec.fields import Body
from service.domain.spec.job import MAX_PRIORITY


class JobPatch(Body):
    """A merge patch as in RFC 7396: a field that is left out stays, null takes one away."""

    priority: int | None = Field(
        default=None,
        ge=-MAX_PRIORITY,
        le=MAX_PRIORITY,
        description="While the job is queued. Null: the default, 0.",
    )
    labels: LabelChanges | None = Field(
        default=None,
        description="Label by label: null as a value removes that one, null in place of the object "
        "removes all.",
    )

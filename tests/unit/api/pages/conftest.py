"""Jobs in every state, and what strangers put into their fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from service.domain.job import DEFAULT_TENANT
from service.domain.spec.job import JobSpec
from service.domain.states import JobState, Step
from service.errors import ModelInvalid
from service.store.store import Store
from tests.fixtures.jobs import at_once

PAYLOADS = [
    "<script>document.title = 'stolen'</script>",
    '"><img src=x onerror="document.title = \'stolen\'">',
    "'><svg onload=document.title='stolen'>",
    "</script><script>document.title = 'stolen'</script>",
    "{{ 7 * 7 }}${7 * 7}<%= 7 * 7 %>",
    "javascript:document.title='stolen'",
    '" autofocus onfocus="document.title = \'stolen\'" x="',
    "--><!-- <b hx-get=/x hx-trigger=load>",
    "&lt;b&gt; &amp;",
]
"""Each fits into a label's value."""

Make = Callable[..., str]


def report_of(sizes: tuple[float, ...] = (0.8, 0.6), *, text: str = "held-out") -> dict[str, Any]:
    """A report with what the comparison reads."""
    dense, parameters = 10.0, 1_000_000
    return {
        "model": {"parameters": parameters, "dense_bytes": 2 * parameters},
        "evaluation": {
            "dense": {
                "perplexity": {text: {"perplexity": dense}},
                "decode_tokens_per_second": 20.0,
            }
        },
        "targets": [
            {
                "name": f"keep-{keep}",
                "size": {"bytes": int(2 * parameters * keep), "parameters": int(parameters * keep)},
                "perplexity": {text: {"perplexity": dense / keep, "ratio": 1 / keep}},
                "decode_tokens_per_second": 20 / keep,
            }
            for keep in sizes
        ],
    }


@pytest.fixture
def make(store: Store, job_body: dict[str, Any]) -> Make:
    """Makes a job in a state, and returns its id."""
    users, attempts = store.users(DEFAULT_TENANT), store.attempts

    def make(
        state: JobState = JobState.QUEUED, report: dict[str, Any] | None = None, **fields: Any
    ) -> str:
        job_id = users.create(JobSpec.model_validate(job_body | fields)).id
        if state is JobState.QUEUED:
            return job_id
        if state is JobState.CANCELLED:
            users.cancel(job_id)
            return job_id
        while (claimed := store.claims.claim()) and claimed.id != job_id:
            pass
        attempts.progress(job_id, 1, Step.RESOLVE, 1, 1, "models")
        attempts.progress(job_id, 1, Step.CALIBRATE, 48, 128, "sequences")
        match state:
            case JobState.CANCELLING:
                users.cancel(job_id)
            case JobState.FAILED:
                failure = ModelInvalid("the tensor 'x' is not finite", param="model").failure()
                attempts.fail(job_id, 1, failure, at_once(1))
            case JobState.SUCCEEDED:
                attempts.succeed(job_id, 1, report or report_of())
        return job_id

    return make

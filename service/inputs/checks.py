"""The checks of a submission: whether a job's inputs can be used, as far as that is cheap to see.

They read folders and list buckets, which may be slow, so they run in threads of their own and have
`EIGENPRESS_SUBMISSION_CHECK_SECONDS` for all of a job. A slow source delays the jobs that name it,
and no other request. A submission ends with the first refusal; an estimate lists them all.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Self

from service.credentials import open_credentials
from service.domain.credentials import NO_CREDENTIALS
from service.domain.datasets import sources_of
from service.domain.spec.evaluation import EvaluationTask, MultipleChoice, PassAt1
from service.domain.spec.job import JobSpec
from service.domain.spec.sources import DatasetData, DataSource, S3Prefix
from service.errors import CodeExecutionForbidden, EigenpressError, SubmissionCheckTimeout
from service.inputs.models.files import ModelHeaders
from service.inputs.models.inspection import inspect_model, inspect_tokenizer
from service.inputs.models.sources import Headers, check_model
from service.inputs.places import within
from service.inputs.s3 import refuse_others
from service.inputs.texts.sources import check_data, check_problems
from service.settings import Settings
from service.storage.s3 import ObjectStorage
from service.store.users import Users

CHECK_THREADS = 32
"""How many submissions and estimates are checked at a time. A thread whose check timed out stays
busy until S3's own timeouts end it."""

BUCKET_FRESH_SECONDS = 1.0
"""So long the bucket counts as answering once it has answered: it takes as long as all else that is
looked at for a model that is known."""

BUCKET = "the server's bucket"
MODEL = "model"


@dataclass(frozen=True)
class Findings:
    """What the checks of a job say of it."""

    headers: Headers | None  # of its model, if they could be read
    refusals: list[EigenpressError]


class SubmissionChecks:
    """Checks submissions side by side. Close it, or use `with`."""

    def __init__(self, settings: Settings, storage: ObjectStorage) -> None:
        self._settings = settings
        self._storage = storage
        self._executor = ThreadPoolExecutor(CHECK_THREADS, "submission-check")
        self._bucket_answered = -math.inf

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_bucket(self) -> None:
        """Raise unless the server's bucket answers, or has answered a moment ago."""
        if time.monotonic() - self._bucket_answered > BUCKET_FRESH_SECONDS:
            self._storage.check()
            self._bucket_answered = time.monotonic()

    def close(self) -> None:
        """Start no further check; do not wait for those that run."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def run(self, spec: JobSpec, users: Users) -> None:
        """Raise unless everything that these users' job names is there, allowed and readable.

        Nothing is written. Raises what the checks raise, and SubmissionCheckTimeout, which names
        the check that was running when the time ran out.
        """
        await self._finish(_Run(spec, users, self._settings, self.check_bucket))

    async def find(self, spec: JobSpec, users: Users) -> Findings:
        """Every reason for which these users' job would be refused, and what its model's files say.

        A check that takes too long is such a reason, SubmissionCheckTimeout.
        """
        refusals: list[EigenpressError] = []
        run = _Run(spec, users, self._settings, self.check_bucket, refusals.append)
        try:
            await self._finish(run)
        except SubmissionCheckTimeout as error:
            refusals = [*refusals, error]  # the thread may go on
        return Findings(run.headers, refusals)

    async def _finish(self, run: _Run) -> None:
        future = asyncio.wrap_future(self._executor.submit(run))
        # wait_for would confuse a check's own TimeoutError with this timeout.
        await asyncio.wait([future], timeout=self._settings.submission_check_seconds)
        if not future.done():
            run.abandon()
            future.cancel()  # takes effect if no thread has started it
            raise run.timeout()
        future.result()


class _Run:
    """The checks of one submission, in order, and which of them is under way.

    With `refused` an error goes there, and the other checks follow.
    """

    def __init__(
        self,
        spec: JobSpec,
        users: Users,
        settings: Settings,
        check_bucket: Callable[[], None],
        refused: Callable[[EigenpressError], None] | None = None,
    ) -> None:
        self.headers: Headers | None = None
        self._spec, self._users = spec, users
        self._settings, self._check_bucket = settings, check_bucket
        self._credentials = NO_CREDENTIALS
        self._refused = refused
        self._seconds = settings.submission_check_seconds
        self._under_way: str | None = None
        self._abandoned = False

    def __call__(self) -> None:
        reach = self._users.reach()
        self._settings = within(self._settings, reach.places)
        self._credentials = open_credentials(reach.sealed, self._settings)
        for name, check in self._checks():
            if self._abandoned:
                return
            self._under_way = name
            try:
                check()
            except EigenpressError as error:
                if self._refused is None:
                    raise
                self._refused(error)

    def _checks(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Each check, with the name of the field or bucket that it checks."""
        spec, settings = self._spec, self._settings
        for param, source in ((MODEL, spec.model), *sources_of(spec)):
            if isinstance(source, S3Prefix):
                yield param, partial(refuse_others, source.uri, settings, self._users, param)
        yield MODEL, self._read_headers
        yield MODEL, self._inspect
        yield "evaluation.tasks", partial(check_allowed, spec, settings)
        tasks = {f"evaluation.tasks.{n}.data": task for n, task in enumerate(spec.evaluation.tasks)}
        for param, source in sources_of(spec):
            yield param, partial(self._check_text, source, tasks.get(param), param)
        yield BUCKET, self._check_bucket

    def _check_text(self, source: DataSource, task: EvaluationTask | None, param: str) -> None:
        """Raise unless the job may use the text or the problems, and they can be read."""
        if isinstance(source, DatasetData):
            self._users.datasets.require(source.id, f"{param}.id")
        if isinstance(task, MultipleChoice | PassAt1):
            check_problems(task, self._settings, param.removesuffix(".data"), self._credentials)
        elif not isinstance(source, DatasetData):  # whose upload has checked all of its text
            check_data(source, self._settings, param, self._credentials)

    def _read_headers(self) -> None:
        self.headers = check_model(self._spec.model, self._settings, self._credentials)

    def _inspect(self) -> None:
        if isinstance(self.headers, ModelHeaders):
            inspect_headers(self.headers, self._spec)

    def abandon(self) -> None:
        """Start no further check."""
        self._abandoned = True

    def timeout(self) -> SubmissionCheckTimeout:
        if self._under_way is None:
            return SubmissionCheckTimeout(
                f"{MODEL}: not checked within {self._seconds:g} seconds, because "
                f"{CHECK_THREADS} other jobs were being checked. Submit the job again later."
            )
        return SubmissionCheckTimeout(
            f"{self._under_way}: the check took longer than {self._seconds:g} seconds. Submit the "
            "job again later, or name a place that answers faster: fewer files, or nearer ones.",
            param=None if self._under_way == BUCKET else self._under_way,
        )


def inspect_headers(headers: ModelHeaders, spec: JobSpec) -> None:
    """Raise what a worker would raise about a model and its tokenizer."""
    inspect_model(headers.config, headers.shapes, spec)
    if headers.tokenizer is not None:
        inspect_tokenizer(headers.config, headers.tokenizer)


def check_allowed(spec: JobSpec, settings: Settings) -> None:
    """Raise CodeExecutionForbidden if a task runs what models write and the settings forbid it."""
    for number, task in enumerate(spec.evaluation.tasks):
        if isinstance(task, PassAt1) and not settings.allow_code_execution:
            raise CodeExecutionForbidden(
                f"The task '{task.name}' runs code that models write. This server does so only if "
                "its operator sets EIGENPRESS_ALLOW_CODE_EXECUTION.",
                param=f"evaluation.tasks.{number}",
            )

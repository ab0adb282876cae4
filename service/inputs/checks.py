"""Whether an installation can run the evaluation's tasks, as far as that is cheap to see."""

from __future__ import annotations

from service.domain.spec import JobSpec, MultipleChoice, PassAt1
from service.errors import CodeExecutionForbidden
from service.inputs.sources import check_data
from service.settings import Settings


def check_tasks(spec: JobSpec, settings: Settings) -> None:
    """Raise unless the tasks are allowed and their data is there.

    Raises CodeExecutionForbidden, and the errors of `service.inputs.sources.check_data`.
    """
    check_allowed(spec, settings)
    for number, task in enumerate(spec.evaluation.tasks):
        if isinstance(task, MultipleChoice | PassAt1):
            check_data(task.data, settings, f"evaluation.tasks.{number}.data")


def check_allowed(spec: JobSpec, settings: Settings) -> None:
    """Raise CodeExecutionForbidden if a task runs what models write and the settings forbid it."""
    for number, task in enumerate(spec.evaluation.tasks):
        if isinstance(task, PassAt1) and not settings.allow_code_execution:
            raise CodeExecutionForbidden(
                f"The task '{task.name}' runs code that models write. This server does so only if "
                "its operator sets EIGENPRESS_ALLOW_CODE_EXECUTION.",
                param=f"evaluation.tasks.{number}",
            )

"""Runs tasks of lm-eval, the field's evaluation harness, if it is installed with the workers.

Its tasks fetch their data from the hub, or from the sources that an administrator's own tasks name.
By default, which applies here, the library refuses tasks that run code written by models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from service.domain.spec.evaluation import LmEval
from service.errors import DataNotFound, EigenpressError, HarnessMissing, InvalidParameter
from service.settings import Settings
from workers.evaluation.estimates import Estimate, mean
from workers.evaluation.scores import Scores

BOOTSTRAP_SAMPLES = 1000
"""The sample count for the standard errors of metrics that are not means."""

MAX_REASON_CHARACTERS = 300


def check_harness() -> None:
    """Raise HarnessMissing unless lm-eval is installed."""
    if find_spec("lm_eval") is None:
        raise HarnessMissing


def check_harness_tasks(task: LmEval, settings: Settings, param: str) -> None:
    """Load the tasks and their data once, to find errors before hours of work.

    Raises HarnessMissing, InvalidParameter for a name that lm-eval does not know and for a task
    that two names include, and DataNotFound if a task's data cannot be loaded.
    """
    check_harness()
    manager = _manager(settings.lm_eval_tasks)
    found: dict[str, str] = {}
    for number, name in enumerate(task.tasks):
        where = f"{param}.tasks.{number}"
        if name not in manager.all_tasks:
            raise InvalidParameter(f"lm-eval has no task '{name}'.", param=where)
        try:
            loaded = manager.load([name])
        except Exception as error:  # a task's own code and the hub's client may raise anything
            raise DataNotFound(
                f"The data of lm-eval's task '{name}' cannot be loaded: {_reason(error)}",
                param=where,
            ) from error
        if any(getattr(each, "UNSAFE_CODE", False) for each in loaded["tasks"].values()):
            raise InvalidParameter(
                f"lm-eval's task '{name}' runs code that models write, without a sandbox; "
                "use a task of kind 'pass_at_1', which runs it in one.",
                param=where,
            )
        for each in loaded["tasks"]:
            if each in found:
                raise InvalidParameter(
                    f"lm-eval's task '{each}' is part of both '{found[each]}' and '{name}'.",
                    param=where,
                )
            found[each] = name


def score_harness_task(
    model: Any, tokenizer: Any, name: str, task: LmEval, settings: Settings, batch_size: int
) -> Scores:
    """All metrics of one task, or of all tasks of a group.

    Raises InvalidParameter if lm-eval cannot measure the model on it.
    """
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    try:
        found = simple_evaluate(
            HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size),
            tasks=[name],
            num_fewshot=task.num_fewshot,
            limit=task.limit,
            bootstrap_iters=BOOTSTRAP_SAMPLES,
            task_manager=_manager(settings.lm_eval_tasks),
        )
    except (EigenpressError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the library and a task's own code may raise anything
        raise InvalidParameter(
            f"lm-eval's task '{name}' cannot be measured: {_reason(error)}",
            param="evaluation.tasks",
        ) from error
    return harness_scores(found)


def harness_scores(found: Mapping[str, Any]) -> Scores:
    """Convert the results of lm-eval; keep each problem's value if the metric is their mean."""
    each: dict[str, tuple[float, ...]] = {}
    summaries: dict[str, Estimate] = {}
    for name, results in found["results"].items():
        samples = found["samples"].get(name, ())
        for key, value in results.items():
            metric, _, filter_name = key.partition(",")
            if not filter_name or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            label = f"{name}/{metric}"
            if filter_name != "none":
                label += f",{filter_name}"
            values = tuple(_values(samples, metric, filter_name))
            if values and math.isclose(mean(values).value, value, abs_tol=1e-9):
                each[label] = values
            else:
                error = results.get(f"{metric}_stderr,{filter_name}")
                summaries[label] = Estimate(value, error if isinstance(error, float) else None)
    problems = sum(counts["effective"] for counts in found["n-samples"].values())
    return Scores(problems, each, summaries)


def _values(samples: Sequence[Mapping[str, Any]], metric: str, filter_name: str) -> Iterator[float]:
    """The metric of every problem, in order; nothing if any is not a number."""
    filtered = [sample for sample in samples if sample["filter"] == filter_name]
    filtered.sort(key=lambda sample: sample["doc_id"])
    values = [sample.get(metric) for sample in filtered]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    if len(numbers) == len(values):
        yield from numbers


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_REASON_CHARACTERS]


@cache
def _manager(folder: Path | None) -> Any:
    """The tasks of the library and of `folder`; reading their thousands of files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if folder is None else str(folder))

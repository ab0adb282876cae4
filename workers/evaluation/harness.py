"""Tasks of lm-eval, the field's evaluation harness, where it is installed beside the workers.

Its tasks fetch their data from the hub, or from wherever an operator's own tasks say. Tasks that
run what models write are refused by the library unless it is told otherwise, and it is not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from service.domain.spec import LmEval
from service.errors import DataNotFound, EigenpressError, HarnessMissing, InvalidParameter
from service.settings import Settings
from workers.evaluation.estimates import Estimate, mean
from workers.evaluation.scores import Scores

BOOTSTRAP_SAMPLES = 1000
"""For standard errors of metrics that are not means."""

MAX_REASON_CHARACTERS = 300


def check_harness() -> None:
    """Raise HarnessMissing unless lm-eval is installed."""
    if find_spec("lm_eval") is None:
        raise HarnessMissing


def check_harness_tasks(task: LmEval, settings: Settings, param: str) -> None:
    """Load the tasks and their data once, so that what is missing shows before hours of work.

    Raises HarnessMissing, InvalidParameter for a name that lm-eval does not know and for a task
    that another name's group has already, and DataNotFound where a task's data cannot be had.
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
        except Exception as error:  # whatever a task's own code and the hub's client raise
            raise DataNotFound(
                f"The data of lm-eval's task '{name}' cannot be had: {_reason(error)}", param=where
            ) from error
        if any(getattr(each, "UNSAFE_CODE", False) for each in loaded["tasks"].values()):
            raise InvalidParameter(
                f"lm-eval's task '{name}' runs what models write, and does so unprotected; "
                "a task of kind 'pass_at_1' does so in a sandbox.",
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
    """All metrics of one task, and of the tasks that a group consists of.

    Raises InvalidParameter where lm-eval cannot measure the model on it.
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
    except Exception as error:  # whatever the library and a task's own code raise
        raise InvalidParameter(
            f"lm-eval's task '{name}' cannot be measured: {_reason(error)}",
            param="evaluation.tasks",
        ) from error
    return harness_scores(found)


def harness_scores(found: Mapping[str, Any]) -> Scores:
    """What lm-eval says, with each problem's own values where they explain the metric."""
    each: dict[str, tuple[float, ...]] = {}
    summaries: dict[str, Estimate] = {}
    for name, results in found["results"].items():
        samples = found["samples"].get(name, ())
        for key, value in results.items():
            metric, _, kept = key.partition(",")
            if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            label = f"{name}/{metric}" if kept == "none" else f"{name}/{metric},{kept}"
            values = tuple(_values(samples, metric, kept))
            if values and math.isclose(mean(values).value, value, abs_tol=1e-9):
                each[label] = values
            else:
                error = results.get(f"{metric}_stderr,{kept}")
                summaries[label] = Estimate(value, error if isinstance(error, float) else None)
    problems = sum(counts["effective"] for counts in found["n-samples"].values())
    return Scores(problems, each, summaries)


def _values(samples: Sequence[Mapping[str, Any]], metric: str, kept: str) -> Iterator[float]:
    """The metric of every problem, in their order; nothing where it is not a number."""
    ours = [sample for sample in samples if sample["filter"] == kept]
    values = [sample.get(metric) for sample in sorted(ours, key=lambda sample: sample["doc_id"])]
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    if len(numbers) == len(values):
        yield from numbers


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:MAX_REASON_CHARACTERS]


@cache
def _manager(folder: Path | None) -> Any:
    """All tasks of the library and of a folder; to read their thousands of files takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=None if folder is None else str(folder))

"""The scores of a model on a task, by problem, for paired comparisons of two models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from service.errors import InvalidParameter
from workers.evaluation.estimates import Estimate, mean, paired_difference


@dataclass(frozen=True)
class Scores:
    """The scores of one model on one task, or on a batch of its problems."""

    problems: int
    each: Mapping[str, tuple[float, ...]]
    """The value of every problem, for each metric that is a mean over problems."""
    summaries: Mapping[str, Estimate] = field(default_factory=dict)
    """Metrics that a library aggregated, with its own standard errors."""

    @classmethod
    def total(cls, batches: Sequence[Scores]) -> Scores:
        """The scores on all batches together, in the order given."""
        metrics = dict.fromkeys(metric for batch in batches for metric in batch.each)
        return cls(
            sum(batch.problems for batch in batches),
            {
                metric: tuple(value for batch in batches for value in batch.each.get(metric, ()))
                for metric in metrics
            },
            {metric: estimate for batch in batches for metric, estimate in batch.summaries.items()},
        )

    @classmethod
    def union(cls, tasks: Sequence[Scores]) -> Scores:
        """The scores of several tasks of lm-eval.

        Raises InvalidParameter if two share a metric, as a group and its member do.
        """
        labels = Counter(label for task in tasks for label in (*task.each, *task.summaries))
        for label, count in labels.items():
            if count > 1:
                raise InvalidParameter(
                    f"'{label}' is measured by {count} of the lm-eval tasks in the request.",
                    param="evaluation.tasks",
                )
        return cls.total(tasks)

    def estimates(self) -> dict[str, Estimate]:
        """Every metric with its standard error."""
        return {metric: mean(values) for metric, values in self.each.items()} | dict(self.summaries)

    def differences(self, dense: Scores) -> dict[str, Estimate]:
        """These scores minus another model's, on the same problems in the same order.

        They include only metrics that are means over problems for both models.
        """
        return {
            metric: paired_difference(values, dense.each[metric])
            for metric, values in self.each.items()
            if metric in dense.each
        }

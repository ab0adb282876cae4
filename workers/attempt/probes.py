"""Measures sizes in the memory of the workers, without writing them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from service.errors import ModelInvalid
from workers.attempt.loss_sweeps import LossSweeps, Variant
from workers.compression.candidates import Form, Forms
from workers.evaluation.losses import TextLoss
from workers.resumption.journal import Journal, forms_key
from workers.text.sequences import in_padded_batches
from workers.text.texts import EvaluationText


@dataclass(frozen=True)
class Probe:
    """A size that was measured in memory."""

    forms: Forms
    losses: Mapping[str, TextLoss]  # by dataset


class Probes:
    """Measures the model with layers in any forms; keeps every result here and in the journal.

    Call `dense` before the first probe, with the datasets for the comparison.
    """

    def __init__(
        self,
        sweeps: LossSweeps,
        texts: Iterable[EvaluationText],
        *,
        batch_size: int,
        advance: Callable[[], None],
        journal: Journal,
    ) -> None:
        self._sweeps = sweeps
        self._texts = {text.name: text for text in texts}
        self._batch_size = batch_size
        self._advance = advance
        self._journal = journal
        self._dense: Mapping[str, TextLoss] = {}
        self._measured: dict[frozenset[tuple[str, Form]], dict[str, TextLoss]] = defaultdict(dict)

    def dense(self, datasets: Sequence[str]) -> None:
        """Measure the dense model. Raises ModelInvalid if its loss is not finite."""
        (self._dense,) = self._losses([None], datasets)
        if not all(math.isfinite(loss.perplexity) for loss in self._dense.values()):
            raise ModelInvalid(
                "the model's loss on the evaluation text is not finite", param="model"
            )

    def increase(self, forms: Forms, dataset: str) -> float:
        """The relative increase of the perplexity over the dense model's: 0.1 is 10 percent."""
        self.measure([forms], [dataset])
        loss = self._measured[frozenset(forms.items())][dataset]
        return loss.perplexity / self._dense[dataset].perplexity - 1

    def measure(self, sizes: Sequence[Forms], datasets: Sequence[str]) -> None:
        """Measure the losses of all sizes on these datasets, in one sweep."""
        missing = [
            dict(forms)
            for forms in dict.fromkeys(frozenset(each.items()) for each in sizes)
            if not self._measured[forms].keys() >= set(datasets)
        ]
        for forms, losses in zip(missing, self._losses(missing, datasets), strict=True):
            self._measured[frozenset(forms.items())] |= losses
            self._advance()

    @property
    def done(self) -> list[Probe]:
        """All probes, in the order of their first measurements."""
        return [Probe(dict(forms), losses) for forms, losses in self._measured.items()]

    def _losses(
        self, variants: Sequence[Variant], datasets: Sequence[str]
    ) -> list[dict[str, TextLoss]]:
        """The losses of each variant by dataset, from the journal or measured now."""
        keys = [_key(variant) for variant in variants]
        found = [{name: self._journal.get(f"{key}/{name}") for name in datasets} for key in keys]
        missing = [number for number, losses in enumerate(found) if None in losses.values()]
        if missing:
            batches = {
                name: list(in_padded_batches(self._texts[name].sequences, self._batch_size))
                for name in datasets
            }
            measured = self._sweeps.measure(
                [variants[number] for number in missing],
                [batch for name in datasets for batch in batches[name]],
            )
            for number, losses in zip(missing, measured, strict=True):
                each = iter(losses)
                for name in datasets:
                    loss = TextLoss.total(next(each) for _ in batches[name])
                    found[number][name] = loss
                    self._journal.put(f"{keys[number]}/{name}", loss)
        return found


def _key(variant: Variant) -> str:
    return f"probe/{'dense' if variant is None else forms_key(variant)}"

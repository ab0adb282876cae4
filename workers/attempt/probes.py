"""Measures sizes in the memory of the workers, without writing them.

Every worker puts the low-rank layers of a size into its own copy of the model and measures its
share of the text; the next size replaces them. Meanwhile a worker holds the dense model and the
low-rank layers of one size. If the artifact's dtype differs from the stored one, it also keeps the
original weights of the layers it solved beside the rounded ones; a single worker then holds about
twice the compressible weights.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, zip_longest
from typing import Any

import ray

from service.errors import ModelInvalid
from workers.attempt.schedule import Call, drive
from workers.compression.candidates import Ranks
from workers.evaluation.losses import TextLoss
from workers.resumption.journal import Journal, ranks_key
from workers.text.sequences import in_padded_batches
from workers.text.texts import EvaluationText


@dataclass(frozen=True)
class Probe:
    """A size that was measured in memory."""

    ranks: Ranks
    losses: Mapping[str, TextLoss]  # by dataset


class Probes:
    """Measures the model at any ranks; keeps every result here and in the journal.

    `owners` has the worker that solved each layer. Call `dense` before the first probe, with the
    datasets for the comparison.
    """

    def __init__(
        self,
        workers: Sequence[Any],
        owners: Mapping[str, Any],
        texts: Iterable[EvaluationText],
        *,
        batch_size: int,
        dtype: str,
        advance: Callable[[], None],
        journal: Journal,
    ) -> None:
        self._workers = workers
        self._owners = owners
        self._texts = {text.name: text for text in texts}
        self._batch_size = batch_size
        self._dtype = dtype
        self._advance = advance
        self._journal = journal
        self._placed: dict[str, int | None] = dict.fromkeys(owners)
        self._dense: dict[str, TextLoss] = {}
        self._measured: dict[frozenset[tuple[str, int | None]], dict[str, TextLoss]] = defaultdict(
            dict
        )

    def dense(self, datasets: Iterable[str]) -> None:
        """Measure the dense model. Raises ModelInvalid if its loss is not finite."""
        self._dense = {name: self._journalled_loss(None, name) for name in datasets}
        if not all(math.isfinite(loss.perplexity) for loss in self._dense.values()):
            raise ModelInvalid(
                "the model's loss on the evaluation text is not finite", param="model"
            )

    def increase(self, ranks: Ranks, dataset: str) -> float:
        """The relative increase of the perplexity over the dense model's: 0.1 is 10 percent."""
        loss = self.measure(ranks, [dataset])[dataset]
        return loss.perplexity / self._dense[dataset].perplexity - 1

    def measure(self, ranks: Ranks, datasets: Iterable[str]) -> Mapping[str, TextLoss]:
        """The losses at these ranks, at least on these datasets."""
        measured = self._measured[frozenset(ranks.items())]
        missing = [name for name in datasets if name not in measured]
        if missing:
            measured |= {name: self._journalled_loss(ranks, name) for name in missing}
            self._advance()
        return measured

    @property
    def done(self) -> list[Probe]:
        """All probes, in the order of their first measurements."""
        return [Probe(dict(ranks), losses) for ranks, losses in self._measured.items()]

    def end(self) -> None:
        """Restore the dense model on every worker."""
        ray.get([worker.restore.remote() for worker in self._workers])

    def _journalled_loss(self, ranks: Ranks | None, dataset: str) -> TextLoss:
        """The loss at these ranks (None: of the dense model), from the journal or measured now."""
        key = f"probe/{'dense' if ranks is None else ranks_key(ranks)}/{dataset}"
        loss: TextLoss | None = self._journal.get(key)
        if loss is None:
            if ranks is not None:
                self._place(ranks)
            loss = self._loss(dataset)
            self._journal.put(key, loss)
        return loss

    def _place(self, ranks: Ranks) -> None:
        """Send every worker each layer whose rank has changed, one per owner at a time."""
        changed: dict[Any, list[str]] = defaultdict(list)
        for name, rank in ranks.items():
            if rank != self._placed[name]:
                changed[self._owners[name]].append(name)
        for turn in zip_longest(*changed.values()):
            names = [name for name in turn if name is not None]
            layers = [self._layer(name, ranks[name]) for name in names]
            ray.get([w.substitute.remote(self._dtype, names, *layers) for w in self._workers])
        self._placed |= ranks

    def _layer(self, name: str, rank: int | None) -> Any:
        return None if rank is None else self._owners[name].compressed.remote(name, rank)

    def _loss(self, dataset: str) -> TextLoss:
        """Measure the workers' current model; each worker takes a share of the batches."""
        queues: list[list[Call]] = [[] for _ in self._workers]
        batches = in_padded_batches(self._texts[dataset].sequences, self._batch_size)
        for batch, number in zip(batches, cycle(range(len(queues)))):
            measure = partial(self._workers[number].measure.remote, None, batch)
            queues[number].append(Call(dataset, measure))
        return TextLoss.total(loss for _, loss in drive(queues))

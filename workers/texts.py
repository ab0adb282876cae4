"""The token sequences of a job: what it calibrates on and what it is measured on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.documents import Document, read_documents
from service.settings import Settings
from service.sources import fetch_data
from service.spec import HELD_OUT, DataSource, JobSpec
from workers.sequences import (
    Tokenizer,
    calibration_sequences,
    evaluation_sequences,
    split_documents,
)


@dataclass(frozen=True)
class EvaluationText:
    """One dataset of the evaluation, cut to sequences."""

    name: str
    documents: int
    sequences: list[list[int]]


@dataclass(frozen=True)
class Texts:
    """All text of a job as tokens. No document is both calibrated and evaluated on."""

    calibration_documents: int
    calibration: list[list[int]]
    evaluation: list[EvaluationText]
    skipped_files: list[str]


def read_texts(spec: JobSpec, tokenizer: Tokenizer, settings: Settings) -> Texts:
    """Fetch, split and cut the texts that a job names.

    A document of an evaluation dataset that also stands in the calibration text is left out of
    the calibration. Raises the errors of `service.sources.fetch_data`,
    `service.documents.read_documents` and `workers.sequences`.
    """
    skipped: list[str] = []

    def documents(data: DataSource, param: str) -> list[Document]:
        root = fetch_data(data, settings, param)

        def skip(path: str, _reason: str) -> None:
            skipped.append(path)

        return list(read_documents(root, data.pattern, data.text_field, param, skip))

    calibration = spec.calibration
    everything = documents(calibration.data, "calibration.data")
    ours, held_out = split_documents(everything, calibration.held_out_fraction, calibration.seed)
    datasets = {HELD_OUT: held_out} if spec.evaluation.enabled else {}
    if spec.evaluation.enabled:
        for number, dataset in enumerate(spec.evaluation.datasets):
            datasets[dataset.name] = documents(dataset.data, f"evaluation.datasets.{number}.data")
    measured = {document.text for texts in datasets.values() for document in texts}
    ours = [document for document in ours if document.text not in measured]
    sequences = calibration_sequences(
        ours,
        tokenizer,
        length=calibration.sequence_length,
        count=calibration.sequences,
        seed=calibration.seed,
    )
    cut = _evaluation_cutter(spec, tokenizer)
    return Texts(
        len(ours), sequences, [cut(name, texts) for name, texts in datasets.items()], skipped
    )


def _evaluation_cutter(
    spec: JobSpec, tokenizer: Tokenizer
) -> Callable[[str, list[Document]], EvaluationText]:
    counts = {dataset.name: dataset.sequences for dataset in spec.evaluation.datasets}

    def cut(name: str, documents: list[Document]) -> EvaluationText:
        sequences = evaluation_sequences(
            documents,
            tokenizer,
            length=spec.calibration.sequence_length,
            count=counts.get(name) or spec.evaluation.sequences,
            seed=spec.calibration.seed,
        )
        return EvaluationText(name, len(documents), sequences)

    return cut

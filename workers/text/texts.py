"""The token sequences of a job, for calibration and for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from service.domain.spec import HELD_OUT, Calibration, DataSource, JobSpec
from service.errors import CalibrationTooShort, DataInvalid, ModelInvalid
from service.inputs.texts.documents import Document, read_documents
from service.inputs.texts.sources import fetch_data
from service.settings import Settings
from workers.text.sequences import (
    MIN_SEQUENCE_TOKENS,
    Tokenizer,
    calibration_sequences,
    evaluation_sequences,
    split_documents,
)


@dataclass(frozen=True)
class EvaluationText:
    """One dataset of the evaluation, cut into sequences."""

    name: str
    documents: int
    sequences: list[list[int]]


@dataclass(frozen=True)
class Texts:
    """All text of a job as tokens. Calibration and evaluation share no document."""

    calibration_documents: int
    calibration: list[list[int]]
    evaluation: list[EvaluationText]
    skipped_files: list[str]


def read_texts(spec: JobSpec, tokenizer: Tokenizer, settings: Settings) -> Texts:
    """Fetch, split and cut the texts of a job.

    The calibration text omits every document that is also in an evaluation dataset. Raises the
    errors of `service.inputs.texts.sources.fetch_data`,
    `service.inputs.texts.documents.read_documents` and `workers.text.sequences`, and DataInvalid
    for a dataset without two consecutive tokens.
    """
    skipped: list[str] = []

    def documents(data: DataSource, param: str) -> list[Document]:
        root = fetch_data(data, settings, param)

        def skip(path: str, _reason: str) -> None:
            skipped.append(path)

        return list(read_documents(root, data.pattern, data.text_field, param, skip))

    everything = documents(spec.calibration.data, "calibration.data")
    datasets = {
        dataset.name: documents(dataset.data, f"evaluation.datasets.{number}.data")
        for number, dataset in enumerate(spec.evaluation.datasets)
        if spec.evaluation.enabled
    }
    ours, held_out = _split(everything, datasets.values(), spec.calibration)
    if spec.evaluation.enabled:
        datasets = {HELD_OUT: held_out} | datasets
    sequences = calibration_sequences(
        ours,
        tokenizer,
        length=spec.calibration.sequence_length,
        count=spec.calibration.sequences,
        seed=spec.calibration.seed,
    )
    cut = _evaluation_cutter(spec, tokenizer)
    return Texts(
        len(ours), sequences, [cut(name, texts) for name, texts in datasets.items()], skipped
    )


def check_token_ids(texts: Texts, tokenizer: Tokenizer, vocabulary_size: int) -> None:
    """Raise ModelInvalid if a token of the texts has no embedding."""
    sequences = chain(texts.calibration, *(text.sequences for text in texts.evaluation))
    check_token_id(max(max(sequence) for sequence in sequences), tokenizer, vocabulary_size)


def check_token_id(token_id: int, tokenizer: Tokenizer, vocabulary_size: int) -> None:
    """Raise ModelInvalid if a token has no embedding."""
    if token_id >= vocabulary_size:
        (token,) = tokenizer.convert_ids_to_tokens([token_id])
        raise ModelInvalid(
            f"its tokenizer has the id {token_id} for '{token}', but vocab_size in config.json is "
            f"{vocabulary_size}: use the tokenizer that the model was trained with",
            param="model",
        )


def _split(
    everything: list[Document], datasets: Iterable[list[Document]], calibration: Calibration
) -> tuple[list[Document], list[Document]]:
    """Calibration and held-out documents, without those of the datasets."""
    in_datasets = {document.text for texts in datasets for document in texts}
    others = [document for document in everything if document.text not in in_datasets]
    if not others:
        raise CalibrationTooShort(
            "every document of the calibration text is also in an evaluation dataset",
            param="calibration.data",
        )
    return split_documents(others, calibration.held_out_fraction, calibration.seed)


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
        if not sequences:
            raise DataInvalid(
                f"no document of '{name}' has the {MIN_SEQUENCE_TOKENS} tokens to measure on",
                param="calibration.data" if name == HELD_OUT else "evaluation.datasets",
            )
        return EvaluationText(name, len(documents), sequences)

    return cut

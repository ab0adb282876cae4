"""The token sequences of a job, for calibration and for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from service.domain.credentials import NO_CREDENTIALS, Credentials
from service.domain.spec.calibration import Calibration
from service.domain.spec.evaluation import HELD_OUT
from service.domain.spec.job import JobSpec
from service.domain.spec.sources import DatasetData, DataSource
from service.errors import CalibrationTooShort, DataInvalid, ModelInvalid
from service.inputs.texts.documents import Document, Skipped, read_documents
from service.inputs.texts.sources import fetch_data
from service.settings import Settings
from workers.text.chats import chat_renderer
from workers.text.sequences import (
    MIN_SEQUENCE_TOKENS,
    Tokenizer,
    calibration_sequences,
    evaluation_sequences,
    split_documents,
    training_sequences,
)

COUNTED_BYTES = 4 * 2**20
"""Of a dataset's text: the tokens of more are estimated by these."""

RECOVERY = "recovery text"
"""What layers are trained on. No evaluation can have a name with a space."""

EMPTY, NOT_TEXT = "rows without text", "files that are not text"
REPEATED, MEASURED = "repeated documents", "documents of an evaluation dataset"
"""Why something of a text is not used."""


@dataclass(frozen=True)
class EvaluationText:
    """One dataset of the evaluation, cut into sequences."""

    name: str
    documents: int
    sequences: list[list[int]]


@dataclass(frozen=True)
class Usage:
    """What a job uses of a text."""

    text: str  # "calibration", `RECOVERY`, or the name of an evaluation's
    documents: int  # that it may use
    drawn_from: int  # of these, the documents that sequences were drawn from
    sequences: int
    asked: int  # sequences
    tokens: int
    skipped: Mapping[str, int]  # how much was left out, by the reason


@dataclass(frozen=True)
class Texts:
    """All text of a job as tokens. Calibration and evaluation share no document."""

    calibration_documents: int
    calibration: list[list[int]]
    evaluation: list[EvaluationText]
    skipped_files: list[str]
    usage: Sequence[Usage] = ()  # of the calibration, of the recovery, of evaluations
    tokens_of_datasets: Mapping[str, int] = field(default_factory=dict)  # by their ids
    recovery: list[list[int]] = field(default_factory=list)  # empty without a recovery


class _Reader:
    """Reads one text after another, and keeps account of them."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings, credentials: Credentials) -> None:
        self.skipped_files: list[str] = []
        self.tokens_of_datasets: dict[str, int] = {}
        self._tokenizer = tokenizer
        self._settings = settings
        self._credentials = credentials

    def read(self, data: DataSource, param: str) -> tuple[list[Document], dict[str, int]]:
        """The documents, and how much was left out by the reason."""
        text, skipped = fetch_data(data, self._settings, param, self._credentials), Skipped()
        of_field = f"{param}.id" if isinstance(data, DatasetData) else f"{param}.text_field"
        render = chat_renderer(self._tokenizer, of_field)
        documents = list(
            read_documents(
                text.root, text.pattern, text.text_field, param, render=render, skipped=skipped
            )
        )
        self.skipped_files += skipped.files
        if isinstance(data, DatasetData) and data.id not in self.tokens_of_datasets:
            self.tokens_of_datasets[data.id] = count_tokens(documents, self._tokenizer)
        return documents, _counted({EMPTY: skipped.empty_rows, NOT_TEXT: len(skipped.files)})


def read_texts(
    spec: JobSpec,
    tokenizer: Tokenizer,
    settings: Settings,
    credentials: Credentials = NO_CREDENTIALS,
) -> Texts:
    """Fetch, split and cut the texts of a job, with the tenant's credentials.

    The calibration text omits every document that is also in an evaluation dataset. Raises the
    errors of `service.inputs.texts.sources.fetch_data`,
    `service.inputs.texts.documents.read_documents` and `workers.text.sequences`, and DataInvalid
    for a dataset without two consecutive tokens.
    """
    reader = _Reader(tokenizer, settings, credentials)
    everything, left_out = reader.read(spec.calibration.data, "calibration.data")
    skipped: dict[str, Mapping[str, int]] = {}
    datasets: dict[str, list[Document]] = {}
    for number, dataset in enumerate(spec.evaluation.datasets if spec.evaluation.enabled else ()):
        param = f"evaluation.datasets.{number}.data"
        datasets[dataset.name], skipped[dataset.name] = reader.read(dataset.data, param)
    others = _without(everything, datasets.values())
    ours, held_out = split_documents(
        others, spec.calibration.held_out_fraction, spec.calibration.seed
    )
    left_out |= _counted(
        {
            MEASURED: len(everything) - len(others),
            REPEATED: len(others) - len({document.text for document in others}),
        }
    )
    if spec.evaluation.enabled:
        datasets = {HELD_OUT: held_out} | datasets
    calibration, used = _calibration(ours, tokenizer, spec.calibration, left_out)
    recovery, used_then = _recovery(ours, tokenizer, spec, left_out)
    cut = _evaluation_cutter(spec, tokenizer, skipped)
    evaluation = [cut(name, texts) for name, texts in datasets.items()]
    return Texts(
        len(ours),
        calibration,
        [text for text, _ in evaluation],
        reader.skipped_files,
        [used, *used_then, *(usage for _, usage in evaluation)],
        reader.tokens_of_datasets,
        recovery,
    )


def check_token_ids(texts: Texts, tokenizer: Tokenizer, vocabulary_size: int) -> None:
    """Raise ModelInvalid if a token of the texts has no embedding."""
    sequences = chain(
        texts.calibration, texts.recovery, *(text.sequences for text in texts.evaluation)
    )
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


def _without(everything: list[Document], datasets: Iterable[list[Document]]) -> list[Document]:
    """The documents that are in none of the datasets. Raises CalibrationTooShort if none is."""
    in_datasets = {document.text for texts in datasets for document in texts}
    others = [document for document in everything if document.text not in in_datasets]
    if not others:
        raise CalibrationTooShort(
            "every document of the calibration text is also in an evaluation dataset",
            param="calibration.data",
        )
    return others


def _calibration(
    documents: list[Document],
    tokenizer: Tokenizer,
    asked: Calibration,
    skipped: Mapping[str, int],
) -> tuple[list[list[int]], Usage]:
    drawn = _Drawn(documents)
    sequences = calibration_sequences(
        drawn, tokenizer, length=asked.sequence_length, count=asked.sequences, seed=asked.seed
    )
    return sequences, _usage("calibration", drawn, sequences, asked.sequences, skipped)


def _recovery(
    documents: list[Document], tokenizer: Tokenizer, spec: JobSpec, skipped: Mapping[str, int]
) -> tuple[list[list[int]], list[Usage]]:
    """The sequences to train on, which begin with the calibration's, as far as there is text."""
    if spec.recovery is None:
        return [], []
    drawn, asked = _Drawn(documents), spec.recovery.asked(spec.calibration)
    sequences = training_sequences(
        drawn,
        tokenizer,
        length=spec.calibration.sequence_length,
        count=asked,
        seed=spec.calibration.seed,
    )
    if len(sequences) < (least := spec.recovery.least):
        raise CalibrationTooShort(
            f"the calibration text gives {len(sequences)} sequences, and recovery needs two "
            f"batches, which are {least}: add text, or use shorter sequences or smaller batches",
            param="recovery.batch_size",
        )
    return sequences, [_usage(RECOVERY, drawn, sequences, asked, skipped)]


def _evaluation_cutter(
    spec: JobSpec, tokenizer: Tokenizer, skipped: Mapping[str, Mapping[str, int]]
) -> Callable[[str, list[Document]], tuple[EvaluationText, Usage]]:
    counts = {dataset.name: dataset.sequences for dataset in spec.evaluation.datasets}

    def cut(name: str, documents: list[Document]) -> tuple[EvaluationText, Usage]:
        drawn, count = _Drawn(documents), counts.get(name) or spec.evaluation.sequences
        sequences = evaluation_sequences(
            drawn,
            tokenizer,
            length=spec.calibration.sequence_length,
            count=count,
            seed=spec.calibration.seed,
        )
        if not sequences:
            raise DataInvalid(
                f"no document of '{name}' has the {MIN_SEQUENCE_TOKENS} tokens to measure on",
                param="calibration.data" if name == HELD_OUT else "evaluation.datasets",
            )
        usage = _usage(name, drawn, sequences, count, skipped.get(name, {}))
        return EvaluationText(name, len(documents), sequences), usage

    return cut


class _Drawn:
    """Documents that count how many of them were taken, the first time that they are read."""

    def __init__(self, documents: list[Document]) -> None:
        self.documents = documents
        self.taken = 0

    def __iter__(self) -> Iterator[Document]:
        for document in self.documents:
            self.taken += 1
            yield document


def _usage(
    text: str,
    drawn: _Drawn,
    sequences: list[list[int]],
    asked: int,
    skipped: Mapping[str, int],
) -> Usage:
    tokens = sum(map(len, sequences))
    documents = len(drawn.documents)
    return Usage(text, documents, drawn.taken, len(sequences), asked, tokens, skipped)


def _counted(reasons: Mapping[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in reasons.items() if count}


def count_tokens(documents: list[Document], tokenizer: Tokenizer) -> int:
    """The tokens of the documents; beyond `COUNTED_BYTES`, as many to a byte as in these."""
    counted = tokens = 0
    sizes = [len(document.text.encode()) for document in documents]
    for document, size in zip(documents, sizes, strict=True):
        if counted and counted + size > COUNTED_BYTES:
            break
        encoded = tokenizer(document.text, add_special_tokens=False, verbose=False)
        counted, tokens = counted + size, tokens + len(encoded["input_ids"])
    return round(tokens * sum(sizes) / counted) if counted else 0

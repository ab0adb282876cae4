"""The texts for calibration and for evaluation are read from files and kept separate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.domain.spec.evaluation import HELD_OUT
from service.domain.spec.job import JobSpec
from service.errors import CalibrationTooShort, DataInvalid, DataNotFound, ModelInvalid
from service.inputs.texts.documents import Document
from service.settings import Settings
from tests.fixtures.models import byte_tokenizer
from workers.text import texts as texts_module
from workers.text.texts import (
    RECOVERY,
    Texts,
    Usage,
    check_token_ids,
    count_tokens,
    read_texts,
)

TOKENIZER = byte_tokenizer(adds_bos=True)
BOS = TOKENIZER.bos_token_id


def write_rows(file: Path, rows: list[str]) -> Path:
    file.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    return file


def rows(letter: str, count: int = 40, length: int = 31) -> list[str]:
    """Texts of one window each, all of them different."""
    return [f"{letter}{number:04d}".ljust(length, letter) for number in range(count)]


def read(
    root: Path,
    calibration: Path,
    *,
    evaluate: bool = True,
    recovery: dict[str, int] | None = None,
    **datasets: Path,
) -> Texts:
    spec = JobSpec.model_validate(
        {
            "model": {"source": "local", "path": str(root)},
            "calibration": {
                "data": {"source": "local", "path": str(calibration)},
                "sequences": 16,
                "sequence_length": 32,
                "held_out_fraction": 0.25,
            },
            "targets": [{"keep": 0.8}],
            "recovery": recovery,
            "evaluation": {
                "enabled": evaluate,
                "sequences": 6,
                "datasets": [
                    {"name": name, "data": {"source": "local", "path": str(path)}}
                    for name, path in datasets.items()
                ],
            },
        }
    )
    return read_texts(spec, TOKENIZER, Settings(allowed_roots=(root,), data_dir=root / "data"))


def decoded(sequences: list[list[int]]) -> set[str]:
    return {"".join(TOKENIZER.convert_ids_to_tokens(sequence[1:])) for sequence in sequences}


def test_calibration_and_held_out_text_come_from_different_documents(tmp_path: Path) -> None:
    texts = read(tmp_path, write_rows(tmp_path / "a.jsonl", rows("a")))
    (held_out,) = texts.evaluation
    assert (held_out.name, held_out.documents, len(held_out.sequences)) == (HELD_OUT, 10, 6)
    assert (texts.calibration_documents, len(texts.calibration)) == (30, 16)
    assert all(len(sequence) == 32 for sequence in texts.calibration)
    assert {sequence[0] for sequence in texts.calibration + held_out.sequences} == {BOS}
    assert not decoded(texts.calibration) & decoded(held_out.sequences)


def test_datasets_follow_the_held_out_text_in_the_order_they_were_named(tmp_path: Path) -> None:
    texts = read(
        tmp_path,
        write_rows(tmp_path / "a.jsonl", rows("a")),
        wiki=write_rows(tmp_path / "w.jsonl", rows("w", 3)),
        code=write_rows(tmp_path / "c.jsonl", rows("c", 90)),
    )
    assert [(text.name, text.documents) for text in texts.evaluation] == [
        (HELD_OUT, 10),
        ("wiki", 3),
        ("code", 90),
    ]
    assert [len(text.sequences) for text in texts.evaluation] == [6, 3, 6]
    assert decoded(texts.evaluation[1].sequences) == set(rows("w", 3))


def test_a_document_of_a_dataset_is_not_calibrated_on(tmp_path: Path) -> None:
    shared = rows("a")[:16]
    texts = read(
        tmp_path,
        write_rows(tmp_path / "a.jsonl", rows("a")),
        shared=write_rows(tmp_path / "s.jsonl", shared),
    )
    assert texts.calibration_documents + texts.evaluation[0].documents == 40 - 16
    assert not decoded(texts.calibration) & set(shared)
    assert decoded(texts.calibration) <= set(rows("a"))


def test_not_even_where_it_would_be_cut_into_pieces(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for letter in "ab":
        (folder / f"{letter}.txt").write_text("\n".join(rows(letter)))
    texts = read(tmp_path, folder, measured=folder / "a.txt")
    assert {text[1:].strip("\n")[-1] for text in decoded(texts.calibration)} == {"b"}


def test_calibrating_on_nothing_but_a_dataset_is_refused(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", rows("a"))
    with pytest.raises(CalibrationTooShort, match="also in an evaluation dataset") as caught:
        read(tmp_path, file, same=file)
    assert caught.value.param == "calibration.data"
    assert read(tmp_path, file, evaluate=False, same=file).evaluation == []


def test_without_evaluation_the_datasets_are_not_even_read(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", rows("a"))
    missing = tmp_path / "missing.jsonl"
    assert read(tmp_path, file, evaluate=False, other=missing).evaluation == []
    with pytest.raises(DataNotFound) as caught:
        read(tmp_path, file, other=missing)
    assert str(caught.value.param).startswith("evaluation.datasets.0.data")


def test_a_dataset_without_two_consecutive_tokens_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "TOKENIZER", byte_tokenizer(adds_bos=False))
    file = write_rows(tmp_path / "a.jsonl", rows("a", length=32))
    with pytest.raises(DataInvalid, match=r"no document of 'letters' has the 2 tokens") as caught:
        read(tmp_path, file, letters=write_rows(tmp_path / "l.jsonl", ["a", "b", "c"]))
    assert caught.value.param == "evaluation.datasets"


def test_skipped_files_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    write_rows(folder / "a.jsonl", rows("a"))
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\x00\xff")
    assert read(tmp_path, folder).skipped_files == ["picture.png"]


def test_what_is_used_and_left_out_is_counted(tmp_path: Path) -> None:
    ours, theirs = rows("a"), rows("w", 3)
    texts = read(
        tmp_path,
        write_rows(tmp_path / "a.jsonl", [*ours, "", " ", ours[0], theirs[0]]),
        wiki=write_rows(tmp_path / "w.jsonl", [*theirs, ""]),
    )
    calibration, held_out, wiki = texts.usage
    skipped = {
        "rows without text": 2,
        "documents of an evaluation dataset": 1,
        "repeated documents": 1,
    }
    assert calibration == Usage("calibration", 30, 16, 16, 16, 16 * 32, skipped)
    assert held_out == Usage(HELD_OUT, 10, 6, 6, 6, 6 * 32, {})
    assert wiki == Usage("wiki", 3, 3, 3, 6, 3 * 32, {"rows without text": 1})


def test_recovery_goes_on_where_the_calibration_ends(tmp_path: Path) -> None:
    texts = read(tmp_path, write_rows(tmp_path / "a.jsonl", rows("a")), recovery={"sequences": 24})
    assert len(texts.recovery) == len(decoded(texts.recovery)) == 24
    assert texts.recovery[:16] == texts.calibration
    assert not decoded(texts.recovery) & decoded(texts.evaluation[0].sequences)
    assert texts.usage[1] == Usage(RECOVERY, 30, 24, 24, 24, 24 * 32, {})


def test_recovery_takes_all_text_that_there_is(tmp_path: Path) -> None:
    texts = read(tmp_path, write_rows(tmp_path / "a.jsonl", rows("a")), recovery={})
    assert (texts.usage[1].sequences, texts.usage[1].asked) == (len(texts.recovery), 40)
    assert len(texts.recovery) == 30


def test_recovery_without_two_batches_of_text_is_refused(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", rows("a"))
    with pytest.raises(CalibrationTooShort, match="two batches, which are 32") as caught:
        read(tmp_path, file, recovery={"batch_size": 16})
    assert caught.value.param == "recovery.batch_size"


def test_tokens_beyond_those_counted_are_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = [Document(str(number), "x" * size) for number, size in enumerate((10, 20, 70))]
    assert count_tokens(documents, TOKENIZER) == 100
    monkeypatch.setattr(texts_module, "COUNTED_BYTES", 30)
    assert count_tokens([*documents, Document("3", "é" * 50)], TOKENIZER) == 200
    assert count_tokens([], TOKENIZER) == 0


def test_chats_are_calibrated_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = byte_tokenizer(adds_bos=True)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    monkeypatch.setitem(globals(), "TOKENIZER", tokenizer)
    file = tmp_path / "a.jsonl"
    chats = [{"messages": [{"role": "user", "content": text}]} for text in rows("a")]
    file.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    plain = write_rows(tmp_path / "plain.jsonl", rows("a"))
    assert decoded(read(tmp_path, file).calibration) == decoded(read(tmp_path, plain).calibration)


def test_the_same_files_and_seed_give_the_same_texts(tmp_path: Path) -> None:
    file: Any = write_rows(tmp_path / "a.jsonl", rows("a"))
    assert read(tmp_path, file) == read(tmp_path, file)


def test_a_token_without_an_embedding_is_refused_by_its_name(tmp_path: Path) -> None:
    texts = read(tmp_path, write_rows(tmp_path / "a.jsonl", rows("z")))
    highest = max(map(max, texts.calibration))
    (token,) = TOKENIZER.convert_ids_to_tokens([highest])
    check_token_ids(texts, TOKENIZER, highest + 1)
    with pytest.raises(ModelInvalid, match=f"the id {highest} for '{token}'.* is {highest}:"):
        check_token_ids(texts, TOKENIZER, highest)

"""A tokenizer that cannot be loaded is refused in plain words, which name its file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from service.errors import ModelInvalid
from workers.model.tokenizer import TextTokenizer, load_tokenizer


@pytest.fixture
def folder(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy of a tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelInvalid) as caught:
        load_tokenizer(folder)
    assert caught.value.param == "model"
    words = caught.value.detail
    assert words.startswith("its tokenizer cannot be read: ")
    for foreign in ("pip install", "from_slow", "trust_remote_code", str(folder)):
        assert foreign not in words
    return words


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_sound_tokenizer(folder: Path) -> None:
    assert load_tokenizer(folder)("a")["input_ids"]


def test_none(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    assert "there is no tokenizer.json. Add the files of the model's tokenizer" in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer.model", "qwen.tiktoken"])
def test_only_another_format(folder: Path, name: str) -> None:
    (folder / "tokenizer.json").rename(folder / name)
    assert f"there is only {name}, in a format that is not read here. Save" in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["{broken", "[1]", ""])
def test_no_json(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(content)
    assert f"{name} is not a JSON object (" in refusal(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "3.0"}, "Unknown tokenizer version '3.0'"),
        ({"pre_tokenizer": {"type": "Later"}}, "PreTokenizer"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]}}, "out of vocab"),
    ],
)
def test_a_newer_or_damaged_tokenizer(folder: Path, changes: dict[str, Any], words: str) -> None:
    change(folder / "tokenizer.json", **changes)
    message = refusal(folder)
    assert "tokenizer.json is damaged, or in a format that tokenizers 0." in message
    assert words in message


def test_files_that_disagree(folder: Path) -> None:
    change(folder / "tokenizer_config.json", tokenizer_class=5)
    assert "transformers cannot make a tokenizer of its files ('int' object has" in refusal(folder)


def test_code_is_not_run(folder: Path) -> None:
    code = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    change(folder / "tokenizer_config.json", **code)
    ran = folder / "ran"
    (folder / "mine.py").write_text(f"open({str(ran)!r}, 'w')\n")
    assert "it needs Python code that comes with the model, which is never run" in refusal(folder)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "tokenizer.json",
            {"model": {"type": "WordLevel", "vocab": {"x": 0}, "unk_token": "?"}},
            r"WordLevel error: Missing \[UNK\] token",
        ),
        ("tokenizer_config.json", {"model_max_length": {}}, "'>' not supported"),
    ],
)
def test_a_tokenizer_that_cannot_tokenize_a_text_is_refused(
    folder: Path, file: str, change: dict[str, Any], message: str
) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    tokenizer = TextTokenizer(folder)
    assert tokenizer.eos_token == "</s>"
    with pytest.raises(ModelInvalid, match=f"cannot tokenize the texts: {message}"):
        tokenizer("a text")


def test_a_tokenizer_that_makes_its_library_panic_is_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    normalizer = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": normalizer}))
    with pytest.raises(ModelInvalid, match="cannot be read: Precompiled: "):
        load_tokenizer(folder)

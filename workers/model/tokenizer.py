"""Loads a source model's tokenizer, and says what is wrong with one that cannot be loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from service.errors import ModelInvalid
from service.inputs.models.files import is_tokenizer_file
from workers.model.model_errors import naming_model_errors, one_line

TOKENIZER_NAME = "tokenizer.json"
WHAT = "its tokenizer cannot be read"


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer. Raises ModelInvalid if the folder has none, or one that is code."""
    with naming_model_errors(WHAT):
        try:
            return AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except (MemoryError, SystemError):
            raise
        except Exception as error:
            if "trust_remote_code" in str(error):
                raise
            raise ModelInvalid(f"{WHAT}: {_problem(folder, error)}", param="model") from error


class TextTokenizer:
    """The model's tokenizer, which raises ModelInvalid for a text that it cannot tokenize.

    Some lack a token for what they do not know, and some have settings that only a text brings out.
    """

    def __init__(self, folder: Path) -> None:
        self._tokenizer = load_tokenizer(folder)

    def __call__(self, *texts: Any, **options: Any) -> Any:
        with naming_model_errors("its tokenizer cannot tokenize the texts"):
            return self._tokenizer(*texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def _problem(folder: Path, error: Exception) -> str:
    """What is wrong with the files of a tokenizer that cannot be loaded."""
    for path in sorted(folder.glob("*.json")):
        if is_tokenizer_file(path.name) and (why := _not_an_object(path)):
            return f"{path.name} is not a JSON object ({why}). Save the tokenizer again."
    if not (folder / TOKENIZER_NAME).exists():
        return _without_json(folder)
    try:
        Tokenizer.from_file(str(folder / TOKENIZER_NAME))
    except (MemoryError, SystemError):
        raise
    except Exception as damage:  # tokenizers raises nothing else
        return (
            f"{TOKENIZER_NAME} is damaged, or in a format that tokenizers "
            f"{tokenizers.__version__} does not know ({one_line(damage)}). Save it again with this "
            "version or an older one."
        )
    return (
        f"transformers cannot make a tokenizer of its files ({one_line(error)}"
        f"{' is missing' if isinstance(error, KeyError) else ''}). Save the tokenizer again with a "
        "class of transformers."
    )


def _not_an_object(path: Path) -> str | None:
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        return one_line(error)
    return None if isinstance(value, dict) else f"it is {type(value).__name__}"


def _without_json(folder: Path) -> str:
    others = sorted(
        path.name
        for path in folder.iterdir()
        if is_tokenizer_file(path.name) and path.suffix in (".model", ".spm", ".tiktoken")
    )
    if others:
        return (
            f"there is only {others[0]}, in a format that is not read here. Save the tokenizer as "
            f"{TOKENIZER_NAME}, too."
        )
    return f"there is no {TOKENIZER_NAME}. Add the files of the model's tokenizer."

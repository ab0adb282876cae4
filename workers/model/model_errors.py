"""Gives the errors that libraries raise about a model one name, so that they are never retried."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from service.errors import EigenpressError, ModelInvalid, NotACausalLM
from workers.compression.errors import CPU_ALLOCATOR, CompressionError, is_panic

MAX_MESSAGE_CHARACTERS = 300

_VALIDATION = re.compile(r"^(Class v|V)alidation error for (validator|field) '\w+': \w+: ")
"""What transformers puts before the message of a check of a configuration."""


@contextmanager
def naming_model_errors(what: str, param: str = "model") -> Iterator[None]:
    """Raise ModelInvalid ("`what`: the message") or NotACausalLM for any error in the block.

    Errors that have a name of ours keep it. So does exhausted memory, which is not the model's
    fault; Python may then raise SystemError as well.
    """
    try:
        yield
    except (EigenpressError, CompressionError, MemoryError, SystemError, torch.OutOfMemoryError):
        raise
    except BaseException as error:  # transformers and tokenizers raise all kinds, even panics
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        message = _VALIDATION.sub("", _whole(error))
        if CPU_ALLOCATOR in message:
            raise
        if isinstance(error, KeyError):
            message += " is unknown"
        if "Unrecognized configuration class" in message:
            raise NotACausalLM(
                "transformers knows no causal language model of this architecture", param=param
            ) from error
        if "trust_remote_code" in message:
            message = (
                "it needs Python code that comes with the model, which is never run. Save it with "
                "one of transformers' own classes."
            )
        raise ModelInvalid(f"{what}: {_cut(message)}", param=param) from error


def one_line(error: BaseException) -> str:
    """The error's message without line feeds, or its type."""
    return _cut(_whole(error))


def _whole(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _cut(message: str) -> str:
    """The message, without its middle if it is long: the wrong value is often at its end."""
    if len(message) <= MAX_MESSAGE_CHARACTERS:
        return message
    half = MAX_MESSAGE_CHARACTERS // 2
    return f"{message[:half]}…{message[-half:]}"

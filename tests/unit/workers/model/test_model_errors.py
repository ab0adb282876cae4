"""Whatever a library raises about a model is the model's fault, except for exhausted memory."""

from __future__ import annotations

import pytest
import torch

from service.errors import CodeExecutionForbidden, ModelInvalid, NotACausalLM
from workers.model.model_errors import naming_model_errors


def test_what_goes_well_is_left_alone() -> None:
    with naming_model_errors("it cannot be read"):
        pass


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (Exception("Error while\n  initializing BPE"), "x: Error while initializing BPE"),
        (ZeroDivisionError("division by zero"), "x: division by zero"),
        (AttributeError(), "x: AttributeError"),
        (KeyError("banana"), "x: 'banana' is unknown"),
        (OSError("long " * 1000 + "!"), f"x: {'long ' * 30}…{('long ' * 30 + '!')[1:]}"),
    ],
)
def test_any_error_becomes_one_of_ours_on_one_line(error: Exception, message: str) -> None:
    with pytest.raises(ModelInvalid) as caught, naming_model_errors("x", "model.path"):
        raise error
    assert caught.value.detail == message
    assert caught.value.param == "model.path"
    assert caught.value.__cause__ is error
    assert not caught.value.retryable


def test_code_is_named_wherever_a_long_message_says_so() -> None:
    long = "long " * 100
    with pytest.raises(ModelInvalid, match="needs Python code"), naming_model_errors("x"):
        raise ValueError(f"{long} trust_remote_code {long}")


def test_a_configuration_of_another_kind_of_model_is_named_as_such() -> None:
    with pytest.raises(NotACausalLM), naming_model_errors("x"):
        raise ValueError("Unrecognized configuration class <ViTConfig> for this kind of AutoModel")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        CodeExecutionForbidden("ours"),
    ],
)
def test_exhausted_memory_and_our_own_errors_keep_their_names(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, naming_model_errors("x"):
        raise error
    assert caught.value is error

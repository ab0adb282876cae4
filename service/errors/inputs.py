"""The request or its inputs are at fault."""

from __future__ import annotations

from service.errors.base import EigenpressError
from service.printable import one_line


class UserError(EigenpressError):
    """The request cannot be carried out as it stands."""

    code = "invalid_request"

    def __init__(self, detail: str | None = None, *, param: str | None = None) -> None:
        super().__init__(detail and one_line(detail), param=param)


class InvalidParameter(UserError):
    """A field of the request has a value that is not allowed."""

    code = "invalid_parameter"


class PathNotAllowed(UserError):
    """The path is outside the folders that this server may read."""

    code = "path_not_allowed"


class ModelNotFound(UserError):
    """There is no model at the given place."""

    code = "model_not_found"


class ModelConfigMissing(UserError):
    """The model's folder has no config.json."""

    code = "model_config_missing"


class ModelInvalid(UserError):
    """The model's files cannot be read."""

    code = "model_invalid"


class NotACausalLM(UserError):
    """The model is not a causal language model."""

    code = "not_a_causal_lm"


class UnsafeWeights(UserError):
    """The model's weights are pickled; only safetensors and GGUF are read."""

    code = "unsafe_weights"


class UnsupportedLayer(UserError):
    """The model has a layer of a kind that cannot be compressed."""

    code = "unsupported_layer"


class DataNotFound(UserError):
    """There is no text at the given place."""

    code = "data_not_found"


class DataInvalid(UserError):
    """The text cannot be read."""

    code = "data_invalid"


class CalibrationTooShort(UserError):
    """The calibration text holds fewer tokens than the job asks for."""

    code = "calibration_too_short"


class TargetUnreachable(UserError):
    """No choice of ranks or bits meets the target."""

    code = "target_unreachable"


class CodeExecutionForbidden(UserError):
    """This server does not run code that models write."""

    code = "code_execution_forbidden"


class IdempotencyKeyReused(UserError):
    """This Idempotency-Key came with another body before: use a new key for a new job."""

    code = "idempotency_key_reused"


class WebhookUrlForbidden(UserError):
    """The server sends nothing to this URL."""

    code = "webhook_url_forbidden"


class QueueTimeExceeded(UserError):
    """The job waited longer than its limits.queue_seconds."""

    code = "queue_time_exceeded"


class RunTimeExceeded(UserError):
    """The job ran longer than its limits.run_seconds."""

    code = "run_time_exceeded"

"""The log of the API's server, which uvicorn configures by `service.log_lines.UVICORN_LOG`."""

from __future__ import annotations

import logging

from service.log_lines import stderr_handler
from service.settings import Settings


def handler() -> logging.Handler:
    """Writes the lines of all loggers, uvicorn's included, in the format of the settings."""
    return stderr_handler(Settings().log_format, actor="api")

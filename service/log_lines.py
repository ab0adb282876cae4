"""How every process of an installation writes its log: as text, or as one JSON object a line.

    text   2026-11-28 09:30:00,123 INFO eigenpress.driver [job-01kb-1 driver 5f3c] All done
    json   {"timestamp": ..., "level": "INFO", "logger": "eigenpress.driver", "message": "All done",
            "job": "job-01kb", "attempt": 1, "actor": "driver", "request_id": "5f3c"}

A line says which job, attempt and request it is about, as far as its process knows. No message
makes a second line: text escapes line feeds, and indents tracebacks. What others print past the
logs (Ray, the shell of a driver) is as they write it.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from service.printable import one_line, printable

LogFormat = Literal["text", "json"]

QUIET = ("alembic", "botocore", "httpx")
"""Libraries that log what is of no interest, such as every request, as INFO."""

UVICORN_LOG = Path(__file__).with_name("uvicorn_log.json")
"""What uvicorn's `--log-config` names, for a log like those of the other processes."""

INDENT = "    "
START = '{"timestamp": '
"""With it each line of JSON begins."""

_of_process: dict[str, Any] = {}
_of_task: ContextVar[Mapping[str, Any]] = ContextVar("log_fields", default={})  # noqa: B039 - never changed


def configure_logging(log_format: LogFormat, **fields: Any) -> None:
    """Write this process's log to stderr, all loggers' and uncaught errors'.

    Every line has `fields`. Loggers of libraries lose handlers of their own.
    """
    root = logging.getLogger()
    root.handlers = [stderr_handler(log_format, **fields)]
    root.setLevel(logging.INFO)
    for logger in logging.Logger.manager.loggerDict.values():
        if isinstance(logger, logging.Logger) and logger.handlers:
            logger.handlers = []
            logger.propagate = True


def stderr_handler(log_format: LogFormat, **fields: Any) -> logging.Handler:
    """The handler of `configure_logging`, for those that configure loggers themselves."""
    _of_process.clear()
    _of_process.update(_given(fields))
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_json_formatter() if log_format == "json" else TextFormatter())
    handler.addFilter(_add_fields)
    return handler


def log_fields() -> dict[str, Any]:
    """What a line that is logged now says beside its message."""
    return _of_process | dict(_of_task.get())


def bind(**fields: Any) -> None:
    """Have all later lines of this task or thread say the fields that are not None."""
    _of_task.set({**_of_task.get(), **_given(fields)})


@contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """Likewise the lines inside the block."""
    before = _of_task.set({**_of_task.get(), **_given(fields)})
    try:
        yield
    finally:
        _of_task.reset(before)


@contextmanager
def bound_everywhere(**fields: Any) -> Iterator[None]:
    """Have the lines of all threads say the fields that are not None, inside the block."""
    before = dict(_of_process)
    _of_process.update(_given(fields))
    try:
        yield
    finally:
        _of_process.clear()
        _of_process.update(before)


class TextFormatter(logging.Formatter):
    """Lines for people."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; with a traceback, the indented lines of this follow."""
        trace = self.formatException(record.exc_info) if record.exc_info else record.exc_text
        return _text(
            self.formatTime(record),
            record.levelname,
            record.name,
            vars(record),
            record.getMessage(),
            trace,
        )


def readable(text: str) -> str:
    """A part of a log with its lines of JSON as text; other lines stay as they are.

    Ray's prefix of a worker's line stays in front of it.
    """
    return "".join(_readable_line(line) for line in text.splitlines(keepends=True))


def _readable_line(line: str) -> str:
    start = line.find(START)
    if start < 0:
        return line
    try:
        fields, end = json.JSONDecoder().raw_decode(line, start)
        at = datetime.fromisoformat(fields["timestamp"]).isoformat(" ", "milliseconds")
        parts = at, fields["level"], fields["logger"], fields, str(fields["message"])
        return line[:start] + _text(*parts, fields.get("exc_info")) + line[end:]
    except (KeyError, TypeError, ValueError, RecursionError):
        return line


def _text(
    at: str, level: str, logger: str, fields: Mapping[str, Any], message: str, trace: str | None
) -> str:
    about = " ".join(_about(fields))
    line = f"{at} {level} {logger} {f'[{about}] ' if about else ''}{message.rstrip()}"
    lines = [line, *(INDENT + each for each in trace.splitlines())] if trace else [line]
    return "\n".join(one_line(printable(each)) for each in lines)


def _about(fields: Mapping[str, Any]) -> Iterator[str]:
    """The attempt under its name on the cluster, with the process of it; and the request."""
    if job := fields.get("job"):
        attempt, actor = fields.get("attempt"), fields.get("actor")
        yield f"{job}-{attempt}" if attempt else str(job)
        if actor:
            yield str(actor)
    if request := fields.get("request_id"):
        yield str(request)


def _json_formatter() -> logging.Formatter:
    from pythonjsonlogger.core import RESERVED_ATTRS  # clients of the API do without it
    from pythonjsonlogger.json import JsonFormatter

    class Formatter(JsonFormatter):
        def process_log_record(self, log_data: dict[str, Any]) -> dict[str, Any]:
            return {"timestamp": log_data.pop("timestamp"), **super().process_log_record(log_data)}

    return Formatter(
        "%(levelname)s %(name)s %(message)s",
        rename_fields={"levelname": "level", "name": "logger"},
        timestamp=True,
        reserved_attrs=[*RESERVED_ATTRS, "color_message"],  # uvicorn's, for terminals
    )


def _add_fields(record: logging.LogRecord) -> bool:
    vars(record).update(log_fields())
    return True


def _given(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("eigenpress").critical("The process ends", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(uncaught: threading.ExceptHookArgs) -> None:
    if uncaught.exc_value is not None:
        trace = uncaught.exc_type, uncaught.exc_value, uncaught.exc_traceback
        logging.getLogger("eigenpress").critical("A thread has ended", exc_info=trace)

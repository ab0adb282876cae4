"""Asks transformers about a model before a job is accepted, in a process with bounds.

What config.json describes may take any time and memory to build, so each inspection has a process
of its own. It is forked from one that has imported torch and transformers once; this first takes
some seconds. What it says of the same bytes is kept, so the next job on a model is accepted in
milliseconds. Where they are not installed, as beside an API alone, the workers look first.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import logging
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cache
from importlib.util import find_spec
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import Any

from service.domain.spec.job import JobSpec
from service.errors import ModelInvalid, UserError
from service.inputs.models.files import CONFIG_NAME

PROGRAM = "workers.actors.inspector"
NEEDED = ("torch", "transformers", "workers")
VARIABLES = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
"""What the process sees of the environment: no secrets."""
CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Names the folder that torch makes when it is imported; the process removes it at its end."""

MAX_SECONDS = 5
MAX_MEMORY_BYTES = 2 * 2**30
"""The bounds of one inspection, in processor time and memory."""

GIVE_UP_SECONDS = 10
"""A busy machine may take so long by the clock; then the workers look first."""

PATIENCE_SECONDS = 60
"""How long an answer may take beyond the bound: the first one waits for the imports."""

END_SECONDS = 2

MAX_KNOWN = 1000
"""How many answers are kept: a hash and an error each."""
IRRELEVANT = frozenset({"name", "labels", "priority", "limits"})
"""Fields of a specification that say nothing of its model."""

MAX_TENSORS = 20_000
"""The names of more are left to the workers; these take 2 seconds."""

log = logging.getLogger("eigenpress.inspection")


def inspect_model(config: bytes, shapes: Mapping[str, Sequence[int]], spec: JobSpec) -> None:
    """Raise what a worker would raise about a model and the lengths that a job asks for.

    `config` is its config.json, `shapes` has every tensor of its checkpoint. Raises the errors of
    `workers.actors.inspection.inspect`, and ModelInvalid if the model exceeds the bounds.
    """
    known = shapes if len(shapes) <= MAX_TENSORS else None
    what = f"{CONFIG_NAME} describes a model"
    asked = json.dumps(known), spec.model_dump_json(exclude=set(IRRELEVANT))
    _run("inspect", what, asked, {CONFIG_NAME: config}, known, spec)


def inspect_tokenizer(config: bytes, files: Mapping[str, bytes]) -> None:
    """Raise what a worker would raise about a model's tokenizer.

    `config` is the model's config.json, `files` are the tokenizer's. Raises the errors of
    `workers.actors.inspection.inspect_tokenizer`, and ModelInvalid if it exceeds the bounds.
    """
    _run("inspect_tokenizer", "the tokenizer is one", (), {CONFIG_NAME: config, **files})


def _run(
    function: str,
    what: str,
    asked: Sequence[str],
    files: Mapping[str, bytes],
    *arguments: object,
) -> None:
    """Have a function called with a folder of these files, and raise what it raises.

    `asked` says what the answer depends on beside the files.
    """
    if not available():
        return
    digest = _digest(function, asked, files)
    if digest in _KNOWN:
        if (known := _KNOWN[digest]) is not None:
            raise copy(known)  # an error keeps the traceback of where it was raised
        return
    with tempfile.TemporaryDirectory() as name:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        answer = _INSPECTOR.ask(
            (function, (Path(name), *arguments), GIVE_UP_SECONDS, MAX_SECONDS, MAX_MEMORY_BYTES)
        )
    if answer is None or isinstance(answer, UserError):
        if len(_KNOWN) >= MAX_KNOWN:
            _KNOWN.clear()
        _KNOWN[digest] = answer
    if isinstance(answer, UserError):
        raise copy(answer)
    if isinstance(answer, str):
        raise ModelInvalid(
            f"{what} that takes too much {answer} to build (the bounds are {MAX_SECONDS} seconds "
            f"of processor time and {MAX_MEMORY_BYTES} bytes, without weights).",
            param="model",
        )
    if answer is not None:
        log.error("A model could not be inspected: %s", answer)  # the workers will see it


def _digest(function: str, asked: Sequence[str], files: Mapping[str, bytes]) -> str:
    hashed = hashlib.sha256()
    contents = (part for file in sorted(files) for part in (file.encode(), files[file]))
    for part in (function.encode(), *(each.encode() for each in asked), *contents):
        hashed.update(b"%d:" % len(part))
        hashed.update(part)
    return hashed.hexdigest()


@cache
def available() -> bool:
    """Whether torch and transformers are installed, and so a model can be inspected."""
    return all(find_spec(name) is not None for name in NEEDED)


class _Inspector:
    """The process that inspects, started when it is first asked; it ends with this one."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    def ask(self, request: tuple[Any, ...]) -> Any:
        """The answer of `workers.actors.inspector`, or an OSError that says why there is none."""
        with self._lock:
            try:
                connection = self._started()
                connection.send(request)
                if connection.poll(GIVE_UP_SECONDS + PATIENCE_SECONDS):
                    return connection.recv()
                problem = OSError("no answer")
            except (EOFError, OSError) as error:
                problem = OSError(f"{type(error).__name__}: {error}")
            self._end()
            return problem

    def close(self) -> None:
        with self._lock:
            self._end()

    def _started(self) -> Connection:
        if self._connection is None:
            self._connection, theirs = Pipe()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", PROGRAM, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,  # an interrupt at the terminal is for the API
                )
        return self._connection

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            try:
                self._process.wait(END_SECONDS)  # it ends by itself, unless it hangs
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._connection = self._process = None


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    # It forks, which processes with threads must not do.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    cache = Path(tempfile.gettempdir()) / f"eigenpress-inspector-{secrets.token_hex(8)}"
    return kept | threads | {CACHE_VARIABLE: str(cache)}


_INSPECTOR = _Inspector()
_KNOWN: dict[str, UserError | None] = {}
"""By what was asked: None, or what is wrong with the model. Answers beyond the bounds are not kept;
they may be another time's."""
atexit.register(_INSPECTOR.close)

"""Asks transformers about a model before a job is accepted, in a process with bounds.

What config.json describes may take any time and memory to build, so each inspection has a process
of its own. It is forked from one that has imported torch and transformers once; this first takes
some seconds. Where they are not installed, as beside an API alone, the workers look first.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import resource
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

from service.domain.spec import JobSpec
from service.errors import EigenpressError, ModelInvalid, UserError
from service.inputs.models.files import CONFIG_NAME

MODULE = "workers.actors.inspection"
NEEDED = ("torch", "transformers", "workers")

MAX_SECONDS = 10
MAX_MEMORY_BYTES = 2 * 2**30
"""The bounds of one inspection; the largest public models take a tenth of both."""

AT_A_TIME = 2
"""How many inspections run side by side."""

MARGIN_BYTES = 2**26
"""With less memory left, an inspection is taken to have failed for lack of it."""

MAX_FILE_BYTES = 2**20
"""Libraries try out the folder for temporary files."""

MAX_TENSORS = 50_000
"""The names of more tensors are left to the workers."""

_SLOTS = BoundedSemaphore(AT_A_TIME)

log = logging.getLogger("eigenpress.inspection")


def inspect_model(config: bytes, shapes: Mapping[str, Sequence[int]], spec: JobSpec) -> None:
    """Raise what a worker would raise about a model and the lengths that a job asks for.

    `config` is its config.json, `shapes` has every tensor of its checkpoint. Raises the errors of
    `workers.actors.inspection.inspect`, and ModelInvalid if the model exceeds the bounds.
    """
    known = shapes if len(shapes) <= MAX_TENSORS else None
    what = f"{CONFIG_NAME} describes a model"
    _run("inspect", what, {CONFIG_NAME: config}, known, spec)


def inspect_tokenizer(config: bytes, files: Mapping[str, bytes]) -> None:
    """Raise what a worker would raise about a model's tokenizer.

    `config` is the model's config.json, `files` are the tokenizer's. Raises the errors of
    `workers.actors.inspection.inspect_tokenizer`, and ModelInvalid if it exceeds the bounds.
    """
    _run("inspect_tokenizer", "the tokenizer is one", {CONFIG_NAME: config, **files})


def _run(function: str, what: str, files: Mapping[str, bytes], *arguments: object) -> None:
    """Call a function of MODULE with a folder of these files, in a process with bounds."""
    if not _available():
        return
    processes = multiprocessing.get_context("forkserver")
    receiver, sender = processes.Pipe(duplex=False)
    with _SLOTS, tempfile.TemporaryDirectory() as name, receiver:
        for file, content in files.items():
            (Path(name) / file).write_bytes(content)
        call = (function, Path(name), *arguments)
        bounds = (MAX_SECONDS, MAX_MEMORY_BYTES)
        process = processes.Process(target=_inspect, args=(sender, what, bounds, call), daemon=True)
        process.start()
        sender.close()
        try:
            error = receiver.recv() if receiver.poll(MAX_SECONDS) else _too_large(what, "time")
        except EOFError:
            error = _too_large(what, "memory")
        finally:
            process.kill()
            process.join()
    if isinstance(error, UserError):
        raise error
    if error is not None:
        log.error("A model could not be inspected: %s", error)  # the workers will see it


@cache
def _available() -> bool:
    """Whether models can be inspected here; prepares the process that the others come from."""
    if any(find_spec(name) is None for name in NEEDED):
        return False
    multiprocessing.get_context("forkserver").set_forkserver_preload([MODULE])
    return True


def _too_large(what: str, needed: str) -> ModelInvalid:
    return ModelInvalid(
        f"{what} that takes too much {needed} to build (the bounds are {MAX_SECONDS} seconds and "
        f"{MAX_MEMORY_BYTES} bytes, without weights).",
        param="model",
    )


def _inspect(
    sender: Connection, what: str, bounds: tuple[int, int], call: tuple[str, *tuple[Any, ...]]
) -> None:
    """Run an inspection in this process, and send the error that it raises, or None."""
    seconds, memory_bytes = bounds
    function, *arguments = call
    module = import_module(MODULE)
    os.environ.clear()
    address_space = _peak_bytes() + memory_bytes
    _limit(seconds, address_space)
    try:
        getattr(module, function)(*arguments)
    except EigenpressError as error:
        # Libraries raise all kinds of errors where memory is exhausted.
        full = address_space - _peak_bytes() < MARGIN_BYTES
        sender.send(_too_large(what, "memory") if full else error)
    else:
        sender.send(None)


def _peak_bytes() -> int:
    """The largest address space that this process has had."""
    status = Path("/proc/self/status").read_text("ascii")
    (peak,) = (line for line in status.splitlines() if line.startswith("VmPeak:"))
    return int(peak.split()[1]) * 1024


def _limit(seconds: int, address_space: int) -> None:
    limits = {
        resource.RLIMIT_AS: address_space,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))

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

from service.domain.spec import JobSpec
from service.errors import EigenpressError, ModelInvalid, UserError
from service.inputs.model_files import CONFIG_NAME

MODULE = "workers.actors.inspection"
NEEDED = ("torch", "transformers", "workers")

MAX_SECONDS = 10
MAX_MEMORY_BYTES = 2 * 2**30
"""The bounds of one inspection; the largest public models take a tenth of both."""

AT_A_TIME = 2
"""How many inspections run side by side."""

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
    if not _available():
        return
    processes = multiprocessing.get_context("forkserver")
    receiver, sender = processes.Pipe(duplex=False)
    with _SLOTS, tempfile.TemporaryDirectory() as name, receiver:
        (Path(name) / CONFIG_NAME).write_bytes(config)
        known = shapes if len(shapes) <= MAX_TENSORS else None
        arguments = (sender, Path(name), known, spec, MAX_SECONDS, MAX_MEMORY_BYTES)
        process = processes.Process(target=_inspect, args=arguments, daemon=True)
        process.start()
        sender.close()
        try:
            error = receiver.recv() if receiver.poll(MAX_SECONDS) else _too_large("time")
        except EOFError:
            error = _too_large("memory")
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


def _too_large(what: str) -> ModelInvalid:
    return ModelInvalid(
        f"{CONFIG_NAME} describes a model that takes too much {what} to build (the bounds are "
        f"{MAX_SECONDS} seconds and {MAX_MEMORY_BYTES} bytes, without weights).",
        param="model",
    )


def _inspect(
    sender: Connection,
    folder: Path,
    shapes: Mapping[str, Sequence[int]] | None,
    spec: JobSpec,
    seconds: int,
    memory_bytes: int,
) -> None:
    """Run an inspection in this process, and send the error that it raises, or None."""
    module = import_module(MODULE)
    os.environ.clear()
    _limit(seconds, memory_bytes)
    try:
        module.inspect(folder, shapes, spec)
    except EigenpressError as error:
        sender.send(error)
    else:
        sender.send(None)


def _limit(seconds: int, memory_bytes: int) -> None:
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    limits = {
        resource.RLIMIT_AS: pages * resource.getpagesize() + memory_bytes,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, (limit, limit))

"""The interface of the actors. Each call is passed on to the object that does the work.

Errors that are not ours are named here, see `workers.actors.failures`.

Those objects' modules import torch and transformers, which takes seconds. The actor's process
imports them, while the driver goes on; the driver never does.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from service.domain.spec.job import JobSpec
from service.domain.tenant import EVERY_PLACE, Places
from service.errors import EigenpressError
from service.inputs.opening import HeldFiles
from service.log_lines import configure_logging
from service.settings import Settings
from workers.actors.failures import named
from workers.compression.errors import is_panic

log = logging.getLogger("eigenpress.worker")

SERVING = "serving"
"""The concurrency group of the methods that only return finished results."""

ASSEMBLING = "assembling"
"""The concurrency group of the methods that write artifacts, with the layers from SERVING."""


def _passed_on(
    name: str, concurrency_group: str | None = None, *, to: str = "worker"
) -> Callable[..., Any]:
    def method(self: Any, *arguments: Any) -> Any:
        with self.held.naming_paths():
            try:
                return getattr(getattr(self, to), name)(*arguments)
            except (EigenpressError, RayError):
                raise
            except BaseException as error:
                if not (isinstance(error, Exception) or is_panic(error)):
                    raise
                log.exception("%s failed", name)
                raise named(error) from None

    method.__name__ = name
    if concurrency_group is None:
        return method
    passed_on: Callable[..., Any] = ray.method(concurrency_group=concurrency_group)(method)
    return passed_on


def _hide_gpus() -> None:
    """Hide the node's GPUs, all of which an actor without GPUs would otherwise see.

    CUDA reads the variable when torch first uses it, not when torch is imported. With a
    `runtime_env` Ray would start a new process instead of using an idle one.
    """
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


class Worker:
    """See `workers.actors.worker`, `recoverer` and `assembler`: one of each, in one process."""

    def __init__(
        self,
        spec: JobSpec,
        attempt: str,
        number: int,
        threads: int,
        gpus: int,
        places: Places = EVERY_PLACE,
        log_fields: Mapping[str, Any] | None = None,
    ) -> None:
        """`log_fields` are those of the driver; with them the process writes its own log."""
        if not gpus:
            _hide_gpus()
        from workers.actors.assembler import Assembler
        from workers.actors.recoverer import Recoverer
        from workers.actors.worker import Worker

        if log_fields is not None:
            from transformers.utils.logging import disable_progress_bar

            disable_progress_bar()  # nobody watches
            fields = {**log_fields, "actor": f"worker-{number}"}
            configure_logging(Settings().log_format, **fields)
            log.info("Started on %s", socket.gethostname())
        self.held = HeldFiles(Settings().scratch_dir / attempt)
        self.worker = Worker(spec, attempt, number, threads, self.held, places)
        self.recoverer = Recoverer(attempt, self.worker)
        self.assembler = Assembler(spec, attempt, self.worker)

    place = _passed_on("place")
    take_credentials = _passed_on("take_credentials")
    attempts_in_scratch = _passed_on("attempts_in_scratch")
    sweep_scratch = _passed_on("sweep_scratch")
    load = _passed_on("load")
    texts = _passed_on("texts")
    exercises = _passed_on("exercises")
    digest = _passed_on("digest", SERVING)
    resume = _passed_on("resume")
    begin_calibration = _passed_on("begin_calibration")
    calibrate = _passed_on("calibrate")
    settle = _passed_on("settle")
    statistics = _passed_on("statistics", SERVING)
    solve = _passed_on("solve")
    compressed = _passed_on("compressed", SERVING)
    begin_teaching = _passed_on("begin_teaching", to="recoverer")
    teach = _passed_on("teach", to="recoverer")
    inputs = _passed_on("inputs", to="recoverer")
    whiten = _passed_on("whiten", to="recoverer")
    begin_recovery = _passed_on("begin_recovery", to="recoverer")
    saved_recovery = _passed_on("saved_recovery", to="recoverer")
    resume_recovery = _passed_on("resume_recovery", to="recoverer")
    trained = _passed_on("trained", SERVING, to="recoverer")
    enter = _passed_on("enter", to="recoverer")
    forward = _passed_on("forward", to="recoverer")
    divergence = _passed_on("divergence", to="recoverer")
    backward = _passed_on("backward", to="recoverer")
    train = _passed_on("train", to="recoverer")
    keep = _passed_on("keep", to="recoverer")
    go_back = _passed_on("go_back", to="recoverer")
    save_recovery = _passed_on("save_recovery", to="recoverer")
    end_recovery = _passed_on("end_recovery", to="recoverer")
    end_teaching = _passed_on("end_teaching", to="recoverer")
    release = _passed_on("release")
    begin_measuring = _passed_on("begin_measuring")
    measure_block = _passed_on("measure_block")
    measured = _passed_on("measured")
    score = _passed_on("score")
    decode_speed = _passed_on("decode_speed")
    continuations = _passed_on("continuations")
    assemble = _passed_on("assemble", ASSEMBLING, to="assembler")
    prove = _passed_on("prove", ASSEMBLING, to="assembler")
    publish = _passed_on("publish", ASSEMBLING, to="assembler")
    clean = _passed_on("clean", ASSEMBLING, to="assembler")

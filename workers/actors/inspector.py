"""``python -m workers.actors.inspector FD``: inspects models, each in a process that ends with it.

It imports torch and transformers once, reads requests from the socket FD, and forks for each. What
a model takes beyond its bounds, or breaks, is gone with the fork. See
`service.inputs.models.inspection`, which starts it.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from service.errors import EigenpressError
from service.inputs.models.inspection import CACHE_VARIABLE
from workers.actors import inspection

MARGIN_BYTES = 2**26
"""With less memory left, an inspection is taken to have failed for lack of it."""

MAX_FILE_BYTES = 2**20
"""Libraries try out the folder for temporary files."""

TIME, MEMORY = "time", "memory"


def main(descriptor: int) -> None:
    """Answer requests until the other side is gone.

    A request is the name of a function of `workers.actors.inspection`, its arguments, the seconds
    after which it is given up, and the bounds in seconds of processor time and bytes. The answer is
    None, an EigenpressError, TIME or MEMORY for a bound that was exceeded, or the exit status of a
    process that broke or was given up.
    """
    connection = Connection(descriptor)
    while True:
        try:
            request = connection.recv()
        except EOFError:
            shutil.rmtree(os.environ[CACHE_VARIABLE], ignore_errors=True)
            return
        process = os.fork()
        if not process:
            connection.send(_answer(*request))
            os._exit(0)
        _, status = os.waitpid(process, 0)
        if status:
            connection.send(_why(os.waitstatus_to_exitcode(status)))


def _why(code: int) -> str | int:
    """What a process lacked that ended with this status; the status if it lacked nothing."""
    if code == -signal.SIGXCPU:
        return TIME
    if code == -signal.SIGALRM:
        return code  # the machine is busy, which is not the model's fault
    return MEMORY if code < 0 else code  # libraries abort where they cannot allocate


def _answer(
    function: str,
    arguments: tuple[Any, ...],
    give_up_seconds: int,
    seconds: int,
    memory_bytes: int,
) -> Any:
    signal.alarm(give_up_seconds)
    address_space = _peak_bytes() + memory_bytes
    _limit(seconds, address_space)
    try:
        getattr(inspection, function)(*arguments)
    except (MemoryError, SystemError):
        return MEMORY
    except EigenpressError as error:
        # Libraries raise all kinds of errors where memory is exhausted.
        return MEMORY if address_space - _peak_bytes() < MARGIN_BYTES else error
    return None


def _peak_bytes() -> int:
    """The largest address space that this process has had."""
    status = Path("/proc/self/status").read_text("ascii")
    (peak,) = (line for line in status.splitlines() if line.startswith("VmPeak:"))
    return int(peak.split()[1]) * 1024


def _limit(seconds: int, address_space: int) -> None:
    limits = {
        resource.RLIMIT_AS: (address_space, address_space),
        resource.RLIMIT_CPU: (seconds, seconds + 1),  # the kernel kills at once at the second
        resource.RLIMIT_FSIZE: (MAX_FILE_BYTES, MAX_FILE_BYTES),
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, bounds in limits.items():
        resource.setrlimit(kind, bounds)


if __name__ == "__main__":
    main(int(sys.argv[1]))

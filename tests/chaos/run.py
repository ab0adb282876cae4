"""`make test-chaos`: runs every scenario in full, and writes its figures to docs/reliability.md.

    python -m tests.chaos.run                     all of them, an hour or more on two cores
    python -m tests.chaos.run faults publishers   only these

The figures of each scenario are stored as JSON in docs/reliability. After every scenario the
document's tables are rewritten from all of them. The exit status is 1 if one found a problem.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import platform
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psutil

from tests.chaos import scenarios
from tests.chaos.document import write_document
from tests.chaos.scenarios import Outcome

RESULTS = Path("docs/reliability")
LOG = Path(".eigenpress/chaos.log")
SCENARIOS: dict[str, Callable[[Path], Outcome]] = {
    "claimers": scenarios.claimers,
    "publishers": scenarios.publishers,
    "damage": scenarios.damage,
    "faults": scenarios.faults,
    "suspension": scenarios.suspension,
    "disks": scenarios.disks,
    "kills": scenarios.kills,
    "kills-smollm2": scenarios.kills_smollm2,
    "postgres": scenarios.postgres,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", choices=[[], *SCENARIOS], metavar="SCENARIO")
    names = parser.parse_args().names or list(SCENARIOS)
    RESULTS.mkdir(parents=True, exist_ok=True)
    LOG.parent.mkdir(exist_ok=True)
    logging.basicConfig(filename=LOG, level=logging.WARNING)
    signal.signal(signal.SIGTERM, _end)
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # for all Rays and their clients
    found = False
    for name in names:
        print(f"{datetime.now(UTC):%H:%M:%S} {name} ...", flush=True)
        outcome = _run(name)
        found = found or bool(outcome["problems"])
        print(f"{datetime.now(UTC):%H:%M:%S} {name}: {outcome['figures']}", flush=True)
        for problem in outcome["problems"]:
            print(f"  {problem}", flush=True)
        write_document(RESULTS, list(SCENARIOS))
    return int(found)


def _end(*_: object) -> None:
    """Stop all parts, including those that child processes have started."""
    for child in multiprocessing.active_children():
        child.terminate()
    sys.exit(128 + signal.SIGTERM)


def _run(name: str) -> Outcome:
    start = time.monotonic()
    # The path is short for Ray's sockets, and readable for the account that runs PostgreSQL.
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        try:
            outcome = SCENARIOS[name](Path(folder))
        except Exception as error:  # the other scenarios still run
            logging.exception(name)
            outcome = {"seeds": "-", "figures": {}, "rows": [], "problems": [repr(error)]}
    outcome["seconds"] = round(time.monotonic() - start)
    outcome["machine"] = _machine()
    outcome["date"] = f"{datetime.now(UTC):%Y-%m-%d}"
    (RESULTS / f"{name}.json").write_text(json.dumps(outcome, indent=2) + "\n")
    return outcome


def _machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} {platform.machine()} cores, {memory:.0f} GiB, {platform.system()}"


if __name__ == "__main__":
    sys.exit(main())

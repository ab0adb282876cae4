"""Lines of logs, in both formats, as processes write them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from service.log_lines import bind, bound, bound_everywhere, log_fields, readable

FORGED = "2026-01-01 00:00:00,000 INFO forged"
MESSAGE = f"a\n{FORGED}\r{FORGED}\u2028{FORGED}\x1b[2J\ud800 größer"
"""What a stranger may have named a file."""

PROCESS = """
import logging, sys, threading, warnings
import library
from service.log_lines import bound, configure_logging

configure_logging(sys.argv[1], job="job-1", attempt=2, actor="driver", request_id=None)
log = logging.getLogger("eigenpress.test")
message = MESSAGE
log.info("read %s", message)
with bound(request_id="r-1"):
    log.warning("asked")
try:
    raise ValueError(message)
except ValueError:
    log.exception("failed")
warnings.warn(message)
logging.getLogger("library").info("from a library")
logging.getLogger("httpx").info("GET https://every.request")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise RuntimeError(message)
"""
LIBRARY = """
import logging

logging.getLogger("library").addHandler(logging.StreamHandler())
logging.getLogger("library").propagate = False
"""
WHAT = [
    "read",
    "asked",
    "failed",
    "UserWarning",
    "from a library",
    "A thread has ended",
    "The process ends",
]
"""What the messages of the process have in them, in their order."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The log of `PROCESS` in each format."""
    folder = tmp_path_factory.mktemp("logs")
    (folder / "library.py").write_text(LIBRARY)
    (folder / "main.py").write_text(PROCESS.replace("MESSAGE", ascii(MESSAGE)))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    written = {}
    for name in ("text", "json"):
        command = [sys.executable, str(folder / "main.py"), name]
        ended = subprocess.run(command, env=env, capture_output=True, check=False)
        assert ended.returncode == 1
        assert ended.stdout == b""
        written[name] = ended.stderr.decode()
    return written


def test_each_line_of_json_is_an_object_with_the_fields_of_its_process(
    written: dict[str, str],
) -> None:
    lines: list[dict[str, Any]] = [json.loads(line) for line in written["json"].splitlines()]
    for line, what in zip(lines, WHAT, strict=True):
        assert what in line["message"]
        assert list(line)[:4] == ["timestamp", "level", "logger", "message"]
        assert (line["job"], line["attempt"], line["actor"]) == ("job-1", 2, "driver")
        assert line.get("request_id") == ("r-1" if what == "asked" else None)
    assert lines[0]["message"] == f"read {MESSAGE}"
    assert lines[0]["level"] == "INFO"
    assert lines[0]["logger"] == "eigenpress.test"
    assert FORGED in lines[2]["exc_info"]
    assert "ZeroDivisionError" in lines[5]["exc_info"]


def test_no_message_makes_a_second_line_of_text(written: dict[str, str]) -> None:
    lines = [line for line in written["text"].splitlines() if not line.startswith("    ")]
    for line, what in zip(lines, WHAT, strict=True):
        about = r"\[job-1-2 driver r-1\]" if what == "asked" else r"\[job-1-2 driver\]"
        assert re.match(rf"\d{{4}}-\d\d-\d\d \S+ [A-Z]+ \S+ {about} .*{what}", line)
    assert r"read a\n2026" in lines[0]
    assert r"\x1b[2J\ud800 größer" in lines[0]
    assert f"    {FORGED}" in written["text"]  # in a traceback, indented


def test_json_reads_as_the_text_would(written: dict[str, str]) -> None:
    def without_times(text: str) -> str:
        return re.sub(r"(?m)^\S+ \S+ ", "", text)

    assert without_times(readable(written["json"])) == without_times(written["text"])


LINE = (
    '{"timestamp": "2026-11-28T09:30:00.123456+00:00", "level": "INFO", '
    '"logger": "eigenpress.worker", "message": "Started", "job": "job-1", "attempt": 1, '
    '"actor": "worker-0"}'
)
TEXT = "2026-11-28 09:30:00.123+00:00 INFO eigenpress.worker [job-1-1 worker-0] Started"


def test_what_ray_adds_to_a_line_stays() -> None:
    before, after = "(Worker pid=7, ip=10.0.0.2) ", " [repeated 2x across cluster]"
    assert readable(f"{before}{LINE}{after}\nplain\n") == f"{before}{TEXT}{after}\nplain\n"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "no JSON at all\n",
        LINE[:-5],
        LINE[40:] + "\r\n",
        '{"timestamp": "2026-11-28T09:30:00+00:00"}',
        '{"timestamp": "yesterday", "level": "", "logger": "", "message": ""}',
        '{"timestamp": 5, "level": "", "logger": "", "message": ""}',
        '{"timestamp": ' + "[" * 100_000,
    ],
)
def test_what_is_no_line_of_ours_stays(line: str) -> None:
    assert readable(line) == line


def test_fields_are_bound_for_a_block_or_a_task() -> None:
    with bound(job="job-1", attempt=1):
        with bound(attempt=2, request_id=None):
            bind(actor="driver")
            assert log_fields() == {"job": "job-1", "attempt": 2, "actor": "driver"}
        assert log_fields() == {"job": "job-1", "attempt": 1}
    assert log_fields() == {}


def test_what_is_bound_everywhere_is_said_by_all_threads() -> None:
    with ThreadPoolExecutor(1) as pool, bound(request_id="r-1"):
        assert "request_id" not in pool.submit(log_fields).result()
        with bound_everywhere(request_id="r-2", job=None):
            assert pool.submit(log_fields).result()["request_id"] == "r-2"
            assert log_fields()["request_id"] == "r-1"  # the task knows better
        assert "request_id" not in pool.submit(log_fields).result()

"""`service.cli.estimates` turns an estimate of the API into tables for people."""

from __future__ import annotations

import io
from typing import Any

from api.schemas.estimates import Estimate
from service.cli.estimates import view
from service.cli.rendering import PrintableConsole

SIZE = {"parameters": 113_281_344, "bytes": 226_670_208}
ESTIMATE: dict[str, Any] = {
    "model": {
        "parameters": 134_515_008,
        "linear_parameters": 106_168_320,
        "dtype": "float32",
        "dense_bytes": 269_030_016,
    },
    "tokens": 24_576,
    "targets": [
        {"name": "keep-0.8", "size": SIZE | {"linear_parameters": 1, "linear_bytes": 2}},
        {"name": "increase-0.1", "size": None},
    ],
    "workers": {"workers": 8, "cpus": 4, "gpus": 1, "accelerator_type": None},
    "waits": "1 of 1 places for running jobs are taken; in the queue: 2.",
    "memory": {
        "worker": 683_000_000,
        "worker_gpu": 678_000_000,
        "worker_files": 119_000_000,
        "too_little": {"calibrate": ["GPU", "host"]},
    },
    "driver_memory": 247_000_000,
    "seconds": {
        "sum": 157.6,
        "steps": [
            {"step": "resolve", "seconds": 0.4, "waits_for": "loading"},
            {"step": "calibrate", "seconds": 157.2, "waits_for": "arithmetic"},
        ],
        "measured_jobs": 2,
    },
    "problems": [
        {"code": "target_unreachable", "detail": "keep-0.01: [no].", "param": "targets.2.keep"}
    ],
    "unknown": [{"field": "targets.1", "reason": "Measurements decide."}],
}


def shown(**changes: Any) -> str:
    answer = Estimate.model_validate_json(Estimate(**ESTIMATE | changes).model_dump_json())
    stream = io.StringIO()
    console = PrintableConsole(file=stream, width=100, highlight=False)
    console.print(view(answer.model_dump(mode="json")), soft_wrap=True)
    return stream.getvalue()


def lines(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_sizes_are_beside_those_of_the_dense_model() -> None:
    found = lines(shown())
    assert ["dense", "134,515,008", "100.0%", "269", "MB", "100.0%"] in found
    assert ["keep-0.8", "113,281,344", "84.2%", "227", "MB", "84.3%"] in found
    assert ["increase-0.1", "?", "?", "?", "?"] in found


def test_workers_memory_and_times_are_said() -> None:
    text = shown()
    assert "Calibrates on 24,576 tokens, with 8 workers of a GPU and 4 CPUs." in text
    assert "up to 683 MB of memory, 678 MB of its GPU and 119 MB of disk." in text
    assert "calibrate: too little of GPU, host" in text
    assert "It would wait: 1 of 1 places" in text
    assert ["resolve", "<", "1", "s", "loading"] in lines(text)
    assert ["calibrate", "2", "min", "37", "s", "arithmetic"] in lines(text)
    assert ["all", "2", "min", "37", "s", "corrected;", "measured", "jobs:", "2"] in lines(text)


def test_problems_and_what_is_not_known_come_last_with_their_fields() -> None:
    *_, detail, where, _, heading, last = shown().splitlines()
    assert detail == "Problem: keep-0.01: [no]."
    assert where == "target_unreachable, targets.2.keep"
    assert (heading, last) == ("Not known", "targets.1: Measurements decide.")


def test_of_a_model_that_is_not_known_the_rest_is_shown() -> None:
    nothing = dict.fromkeys(("model", "memory", "driver_memory", "seconds", "workers", "waits"))
    text = shown(**nothing, targets=[], problems=[], unknown=[])
    assert text.split() == ["Calibrates", "on", "24,576", "tokens."]

"""Examples of the bodies of responses, for the OpenAPI document; a test compares them with it.

The document leaves out fields that are null.
"""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

Json = dict[str, Any]

JOB_ID = "job-01kah7m0q8v5n2c4x6z9b3d1fg"
NOON = "2026-11-21T12:00:00Z"

JOB: Json = {
    "id": JOB_ID,
    "name": "first",
    "state": "running",
    "spec": {
        "name": "first",
        "model": {"source": "local", "path": "/data/models/my-llama"},
        "calibration": {"data": {"source": "local", "path": "/data/text"}},
        "targets": [{"keep": 0.8}],
        "labels": {"team": "ml"},
    },
    "attempt": 1,
    "created_at": NOON,
    "submitted_by": {"key_id": "k3x9v0qd27sp", "key_name": "laptop"},
    "started_at": NOON,
    "finished_at": None,
    "steps": [
        {
            "step": "calibrate",
            "done": 48,
            "total": 128,
            "unit": "passes",
            "started_at": NOON,
            "finished_at": None,
            "seconds_left": 98.0,
        }
    ],
    "time_left": {
        "seconds": 159.5,
        "to_come": [{"step": "evaluate", "seconds": 61.5}],
        "reason": None,
    },
    "available_at": None,
    "error": None,
    "last_error": None,
    "warnings": [],
    "links": {
        "self": f"/v1/jobs/{JOB_ID}",
        "events": f"/v1/jobs/{JOB_ID}/events",
        "artifacts": f"/v1/jobs/{JOB_ID}/artifacts",
        "report": f"/v1/jobs/{JOB_ID}/report",
        "ray_dashboard": f"http://127.0.0.1:8265/#/jobs/{JOB_ID}-1",
    },
}
JOB_PAGE: Json = {"jobs": [JOB], "next_cursor": None}

EVENT_PAGE: Json = {
    "events": [
        {
            "id": 7,
            "attempt": 1,
            "at": NOON,
            "type": "step.started",
            "message": "solve started",
            "data": {"step": "solve", "total": 60, "unit": "groups"},
        }
    ],
    "next_after": 7,
}

ARTIFACT: Json = {
    "name": "keep-0.8",
    "uri": f"s3://eigenpress/jobs/{JOB_ID}/artifacts/keep-0.8/1-9f3ac0de/",
    "bytes": 214_000_000,
    "files": [
        {
            "path": "model.safetensors",
            "size": 214_000_000,
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "url": f"https://s3.example.com/eigenpress/jobs/{JOB_ID}/artifacts/keep-0.8/"
            "1-9f3ac0de/model.safetensors?X-Amz-Signature=...",
        }
    ],
    "expires_at": "2026-11-21T13:00:00Z",
}
ARTIFACT_LIST: Json = {"artifacts": [ARTIFACT]}

REPORT: Json = {
    "job": {"id": JOB_ID, "name": "first"},
    "method": "impact-kron",
    "evaluation": {"dense": {"perplexity": {"held-out": {"perplexity": 10.29}}}},
    "targets": [
        {
            "name": "keep-0.8",
            "size": {"parameters": 113_281_344, "bytes": 226_735_104},
            "perplexity": {"held-out": {"perplexity": 11.15, "ratio": 1.084}},
        }
    ],
}

ESTIMATE: Json = {
    "model": {
        "parameters": 134_515_008,
        "linear_parameters": 106_168_320,
        "dtype": "float32",
        "dense_bytes": 269_030_016,
    },
    "tokens": 24_576,
    "targets": [
        {
            "name": "keep-0.8",
            "size": {
                "parameters": 113_281_344,
                "bytes": 226_735_104,
                "linear_parameters": 84_934_656,
                "linear_bytes": 169_869_312,
            },
        }
    ],
    "workers": {"workers": 1, "cpus": 2, "gpus": 1, "accelerator_type": "H100"},
    "waits": "1 of 1 places for running jobs are taken; in the queue: 2.",
    "memory": {
        "worker": 3_900_000_000,
        "worker_gpu": 678_000_000,
        "worker_files": 949_000_000,
        "too_little": {},
    },
    "driver_memory": 247_000_000,
    "seconds": {
        "sum": 157.0,
        "steps": [{"step": "calibrate", "seconds": 157.0, "waits_for": "arithmetic"}],
        "measured_jobs": 3,
    },
    "problems": [],
    "unknown": [],
}

READINESS: Json = {
    "ready": False,
    "database": {"ok": True, "detail": None},
    "storage": {"ok": True, "detail": None},
    "cluster": {"ok": False, "detail": "Ray does not answer at http://127.0.0.1:8265."},
}


LOG_PAGE: Json = {
    "attempt": 1,
    "source": "driver",
    "sources": ["driver", "worker-0"],
    "start": 0,
    "text": "Begun\n",
    "next_after": 6,
    "complete": True,
}


def example(body: Json) -> ConfigDict:
    """The configuration of a model with this example."""
    return ConfigDict(json_schema_extra={"examples": [body]})

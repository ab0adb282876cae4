"""What a user can do about an error, by its code."""

from __future__ import annotations

from collections.abc import Mapping

REMEDIES: Mapping[str, str] = {
    "artifact_mismatch": "Check the worker's machine and its libraries, and report it with the "
    "configuration of the source model.",
    "attempt_lost": "Read the end of the driver's log below; then retry.",
    "bucket_missing": "Ask an administrator to create the bucket, then retry.",
    "calibration_too_short": "Add text, or lower `calibration.sequences` or "
    "`calibration.sequence_length` in a new job.",
    "cluster_restarted": "Retry: the job resumes from its checkpoints.",
    "cluster_unavailable": "Retry once the Ray cluster answers.",
    "code_execution_forbidden": "Remove the `pass_at_1` tasks, or ask an administrator to set "
    "`EIGENPRESS_ALLOW_CODE_EXECUTION`.",
    "data_invalid": "Correct the text that the error names, and submit a new job.",
    "data_not_found": "Check the place of the text, and submit a new job.",
    "disk_full": "Free room on the machine that the error names, then retry.",
    "driver_killed": "Look at the memory of Ray's head node, where drivers run; then retry.",
    "driver_not_started": "Look at Ray's message above: its head node lacks room or the driver's "
    "command. Then retry.",
    "driver_stopped": "Somebody stopped it in Ray's dashboard. Retry if that was a mistake.",
    "hub_unavailable": "Retry once the model hub answers.",
    "insufficient_resources": "Ask for fewer `workers` in a new job, or add machines and retry.",
    "lease_lapsed": "Check that Ray's head node reaches the database, then retry.",
    "memory_taken": "See what else runs on the machine, or ask for fewer jobs at a time; then "
    "retry.",
    "model_config_missing": "Give the folder that has the model's `config.json`.",
    "model_invalid": "Correct or download the model's files again, and submit a new job.",
    "model_not_found": "Check the model's place. For a private model, check the tenant's "
    "credentials.",
    "node_lost": "Check the machine that the error names, then retry.",
    "not_a_causal_lm": "Submit a causal language model.",
    "out_of_memory": "Lower `calibration.batch_size`, or ask for fewer `workers`, in a new job.",
    "path_not_allowed": "Use a place that this server may read, or ask an administrator to allow "
    "it.",
    "queue_time_exceeded": "Raise `limits.queue_seconds` or the priority in a new job.",
    "run_time_exceeded": "Raise `limits.run_seconds`, or ask for less, in a new job.",
    "schema_mismatch": "Ask an administrator to run `eigenpress migrate`, then retry.",
    "specification_unknown": "Ask an administrator to upgrade the dispatchers and Ray's nodes.",
    "storage_credentials_invalid": "Correct the S3 credentials, here and on Ray's nodes; then "
    "retry.",
    "storage_full": "Remove objects from the bucket or raise its quota, then retry.",
    "storage_read_only": "Grant the S3 credentials write access to the bucket, then retry.",
    "storage_unavailable": "Retry once the S3 server answers.",
    "target_unreachable": "Ask for a target that the model can reach, such as a larger `keep`.",
    "unsafe_weights": "Convert the weights to safetensors or GGUF.",
    "unsupported_layer": "Submit a model without layers of this kind.",
    "version_mismatch": "Install on the node that the error names what Ray's other nodes have; "
    "then retry.",
    "worker_lost": "Check the machine that the error names: is it up, is it out of memory? Then "
    "retry.",
}
"""Sentences whose parts between backticks are code, as docs/operations.md and docs/api.md have
them at length."""


def remedy(code: str) -> str | None:
    """What to do about it; None where there is no common answer."""
    return REMEDIES.get(code)

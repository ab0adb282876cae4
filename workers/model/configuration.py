"""Reads a model's configuration, without what its config.json says about kernels.

Which kernels compute attention or experts depends on the machine, and is no property of the model:
some are compiled on first use, some are fetched from the hub. transformers chooses them here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig

KERNEL_SETTINGS = frozenset(
    {
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
    }
)


def load_configuration(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The configuration in a folder. Raises the errors of transformers."""
    config = AutoConfig.from_pretrained(
        folder, local_files_only=True, trust_remote_code=trust_remote_code
    )
    config._attn_implementation = config._experts_implementation = None
    return config


def without_kernels(config: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a config.json without its settings of kernels, at any depth."""
    return {
        name: without_kernels(value) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name not in KERNEL_SETTINGS
    }
